#ifndef _WIN32
#define _GNU_SOURCE
#include "double.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The rules of the Microsoft C run time: what a quoted command line becomes again. */
static char **split(const char *line) {
    char **words = calloc(strlen(line) + 2, sizeof *words), *out = malloc(2 * strlen(line) + 2);
    int count = 0;
    while (*line) {
        while (*line == ' ' || *line == '\t') line++;
        if (!*line) break;
        int quoted = 0;
        words[count++] = out;
        for (; *line && (quoted || (*line != ' ' && *line != '\t')); line++) {
            int slashes = 0;
            while (*line == '\\') slashes++, line++;
            int halved = *line == '"' ? slashes / 2 : slashes;
            for (int each = 0; each < halved; each++) *out++ = '\\';
            if (*line == '"') {
                if (slashes % 2) *out++ = '"';
                else if (quoted && line[1] == '"') *out++ = *++line;
                else quoted = !quoted;
            } else if (!*line || (!quoted && (*line == ' ' || *line == '\t'))) {
                line--;
                if (slashes == 0 && !*line) break;
                if (line[1] == 0 || line[1] == ' ' || line[1] == '\t') {
                    line++;
                    break;
                }
            } else {
                *out++ = *line;
            }
        }
        *out++ = 0;
    }
    if (!count) free(out);
    return words;
}

/* Descriptors handed out, with the pipe that each was: a number can be used again. */
static struct {
    int fd;
    ino_t inode;
} handed[4096];
static int handed_count;

static uint64_t hand_out(int fd) {
    struct stat about;
    if (handed_count < 4096 && !fstat(fd, &about)) {
        handed[handed_count].fd = fd;
        handed[handed_count++].inode = about.st_ino;
    }
    return (uint64_t)fd;
}

int std_handle_open(uint64_t handle) {
    struct stat about;
    if (!handle || fstat((int)handle, &about)) return 0;
    for (int at = handed_count - 1; at >= 0; at--)
        if (handed[at].fd == (int)handle) return handed[at].inode == about.st_ino;
    return 0;
}

static char **environment_of(const Json *given, const char *console_file) {
    char **made = calloc(1026, sizeof *made);
    int count = 0;
    made[count++] = formatted("PATH=%s", getenv("PATH") ? getenv("PATH") : "/bin");
    if (*console_file) made[count++] = formatted("DOUBLE_CONSOLE=%s", console_file);
    for (const Json *each = given ? given->first : NULL; each && count < 1024; each = each->next)
        made[count++] = formatted("%s=%s", each->key, each->text ? each->text : "");
    return made;
}

static void free_all(char **words) {
    for (char **each = words; *each; each++) free(*each);
    free(words);
}

uint32_t child_start(Child *child, const ChildPlan *plan, uint32_t *pid, uint64_t std[3]) {
    char **argv = split(plan->command_line);
    const char *programs = text_option("programs");
    char *path = argv[0] ? strchr(argv[0], '/') || !programs ? strdup(argv[0]) : formatted("%s/%s", programs, argv[0]) : NULL;
    uint32_t failed = 0;
    struct stat about;
    int own_directory = plan->directory[0] == '/';
    if (!path || stat(path, &about)) failed = 2;
    else if (access(path, X_OK)) failed = 5;
    else if (strstr(plan->directory, "missing") || (own_directory && (stat(plan->directory, &about) || !S_ISDIR(about.st_mode)))) failed = 267;
    int pipes[4][2] = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    int wanted[4] = {plan->want_in, plan->want_out, plan->want_err, 1};
    for (int which = 0; which < 4 && !failed; which++)
        if (wanted[which] && pipe2(pipes[which], O_CLOEXEC)) failed = 1450;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    sigset_t all;
    sigfillset(&all);
    posix_spawnattr_setsigdefault(&attributes, &all);
    sigemptyset(&all);
    posix_spawnattr_setsigmask(&attributes, &all);
    for (int which = 0; which < 3; which++) {
        int theirs = pipes[which][which ? 1 : 0];
        if (which == 2 && plan->console) theirs = pipes[1][1];
        if (theirs >= 0) posix_spawn_file_actions_adddup2(&actions, theirs, which);
        else posix_spawn_file_actions_addopen(&actions, which, "/dev/null", which ? O_WRONLY : O_RDONLY, 0);
    }
    if (pipes[3][1] >= 0) posix_spawn_file_actions_adddup2(&actions, pipes[3][1], 3);
    if (own_directory) posix_spawn_file_actions_addchdir_np(&actions, plan->directory);
    char **environment = environment_of(plan->environment, plan->console_file);
    pid_t made = 0;
    if (!failed && posix_spawn(&made, path, &actions, &attributes, argv, environment)) failed = 5;
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    free_all(environment);
    if (argv[0]) free(argv[0]);
    free(argv);
    free(path);
    for (int which = 0; which < 4; which++) {
        int theirs = pipes[which][which ? 1 : 0], ours = pipes[which][which ? 0 : 1];
        if (theirs >= 0) close(theirs);
        if (failed && ours >= 0) close(ours);
    }
    if (failed) return failed;
    memset(child, 0, sizeof *child);
    child->number = child->group = made;
    child->code_pipe = pipes[3][0];
    child->stdin_copy = pipes[0][1] >= 0 ? fcntl(pipes[0][1], F_DUPFD_CLOEXEC, 3) : 0;
    child->stdout_copy = pipes[1][0] >= 0 ? fcntl(pipes[1][0], F_DUPFD_CLOEXEC, 3) : 0;
    child->stderr_copy = pipes[2][0] >= 0 ? fcntl(pipes[2][0], F_DUPFD_CLOEXEC, 3) : 0;
    std[0] = pipes[0][1] >= 0 ? hand_out(pipes[0][1]) : 0;
    std[1] = pipes[1][0] >= 0 ? hand_out(pipes[1][0]) : 0;
    std[2] = pipes[2][0] >= 0 ? hand_out(pipes[2][0]) : 0;
    *pid = (uint32_t)made;
    return 0;
}

uint32_t child_wait(Child *child) {
    int status = 0;
    while (waitpid((pid_t)child->number, &status, 0) < 0 && errno == EINTR) {}
    uint32_t code = 0;
    fcntl((int)child->code_pipe, F_SETFL, O_NONBLOCK);
    ssize_t got = read((int)child->code_pipe, &code, sizeof code);
    close((int)child->code_pipe);
    child->code_pipe = -1;
    if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGKILL ? 0xFFFFFFFFu : 0xC000013Au;
    return got == sizeof code ? code : (uint32_t)WEXITSTATUS(status);
}

void child_kill(Child *child, int softly) { kill((pid_t)child->number, softly ? SIGTERM : SIGKILL); }
void child_freeze(Child *child, int thaw) { kill((pid_t)child->number, thaw ? SIGCONT : SIGSTOP); }
void child_kill_group(Child *child) {
    if (child->group > 0) kill(-(pid_t)child->group, SIGKILL);
    child->group = 0;
}

static void close_copy(intptr_t *copy) {
    if (*copy > 0) close((int)*copy);
    *copy = 0;
}

void child_close_stdin(Child *child) { close_copy(&child->stdin_copy); }

void child_more_handles(Child *child, uint64_t std[3]) {
    intptr_t copies[3] = {child->stdin_copy, child->stdout_copy, child->stderr_copy};
    for (int which = 0; which < 3; which++)
        std[which] = copies[which] > 0 ? hand_out(fcntl((int)copies[which], F_DUPFD_CLOEXEC, 3)) : 0;
}

void child_free(Child *child) {
    close_copy(&child->stdin_copy);
    close_copy(&child->stdout_copy);
    close_copy(&child->stderr_copy);
}
#endif
