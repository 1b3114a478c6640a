#include "double.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- handles: never reused, high bits set so that a cut one is unknown ---- */

typedef struct {
    uint64_t token;
    int kind, open;
    void *object;
    char *label;
} Entry;
static Entry *entries;
static size_t entry_count;

uint64_t handle_new(int kind, void *object, const char *label) {
    locked();
    static uint64_t next = 0xFFFFFFFF12345678ull;
    uint64_t made = next += 0x11;
    entries = realloc(entries, (entry_count + 1) * sizeof *entries);
    entries[entry_count++] = (Entry){made, kind, 1, object, strdup(label)};
    unlocked();
    return made;
}

static Entry *entry_of(uint64_t token, int kind) {
    for (size_t at = 0; at < entry_count; at++)
        if (entries[at].token == token && entries[at].kind == kind) return &entries[at];
    return NULL;
}

void *handle_get(uint64_t token, int kind) {
    locked();
    Entry *entry = entry_of(token, kind);
    void *object = entry && entry->open ? entry->object : NULL;
    if (!object) complain("a call with a handle that is not open: 0x%llx", (unsigned long long)token);
    unlocked();
    return object;
}

int handle_close(uint64_t token, int kind) {
    locked();
    Entry *entry = entry_of(token, kind);
    int was_open = entry && entry->open;
    if (!entry) complain("closed an unknown handle: 0x%llx", (unsigned long long)token);
    else if (!entry->open) complain("closed twice: %s", entry->label);
    else entry->open = 0;
    unlocked();
    return was_open;
}

/* ---- registrations: each has a thread that delivers in order ---- */

typedef struct Queued {
    struct Queued *next;
    uint32_t type, status;
    char *data;
} Queued;

typedef struct Registration {
    struct Registration *next;
    uint64_t token;
    void *object, *callback, *context;
    int is_process, closing;
    Deliver deliver;
    Queued *queue;
    pthread_t thread;
} Registration;
static Registration *registrations;

void *registration_callback(void *registration) { return ((Registration *)registration)->callback; }
void *registration_context(void *registration) { return ((Registration *)registration)->context; }

static void enqueue(Registration *to, uint32_t type, uint32_t status, const char *data) {
    Queued *made = calloc(1, sizeof *made), **last = &to->queue;
    *made = (Queued){NULL, type, status, data ? strdup(data) : NULL};
    while (*last) last = &(*last)->next;
    *last = made;
    pthread_cond_broadcast(&changed);
}

static void *deliver_for_ever(void *argument) {
    Registration *self = argument;
    locked();
    for (;;) {
        while (!self->queue && !self->closing) pthread_cond_wait(&changed, &lock);
        if (self->closing) break;
        Queued *one = self->queue;
        self->queue = one->next;
        unlocked();
        self->deliver(self, one->type, one->status, one->data);
        free(one->data);
        free(one);
        locked();
    }
    while (self->queue) {
        Queued *next = self->queue->next;
        free(self->queue->data);
        free(self->queue);
        self->queue = next;
    }
    unlocked();
    return NULL;
}

uint64_t registration_new(void *object, int is_process, Deliver deliver, void *callback, void *context) {
    Registration *made = calloc(1, sizeof *made);
    *made = (Registration){.object = object, .callback = callback, .context = context, .is_process = is_process};
    made->deliver = deliver;
    made->token = handle_new(HANDLE_CALLBACK, made, is_process ? "callback of a process" : "callback of a system");
    locked();
    int inside = option("inside_register", 0);
    Sticky *sticky = is_process ? ((Process *)object)->sticky : ((System *)object)->sticky;
    Queued *now = NULL, **last = &now;
    for (; sticky; sticky = sticky->next) {
        if (sticky->delivered && sticky->type != SYSTEM_EXITED && sticky->type != PROCESS_EXITED) continue;
        sticky->delivered = 1;
        if (!inside) {
            enqueue(made, sticky->type, sticky->status, sticky->data);
            continue;
        }
        *last = calloc(1, sizeof **last);
        **last = (Queued){NULL, sticky->type, sticky->status, sticky->data ? strdup(sticky->data) : NULL};
        last = &(*last)->next;
    }
    made->next = registrations;
    registrations = made;
    unlocked();
    while (now) {
        Queued *next = now->next;
        deliver(made, now->type, now->status, now->data);
        free(now->data);
        free(now);
        now = next;
    }
    pthread_create(&made->thread, NULL, deliver_for_ever, made);
    return made->token;
}

/* Waits for a running callback, as the real one does. */
void registration_close(uint64_t token) {
    locked();
    Registration **at = &registrations;
    while (*at && (*at)->token != token) at = &(*at)->next;
    Registration *found = *at;
    if (found) {
        *at = found->next;
        found->closing = 1;
        pthread_cond_broadcast(&changed);
    }
    unlocked();
    if (!found) return;
    if (pthread_equal(pthread_self(), found->thread)) {
        locked();
        complain("unregistered inside of its own callback");
        unlocked();
        pthread_detach(found->thread);
        return;
    }
    pthread_join(found->thread, NULL);
    free(found);
}

/* With the lock held. */
static void emit_locked(void *object, int is_process, uint32_t type, uint32_t status, const char *data, int sticky) {
    int delivered = 0;
    uint32_t flagged = status & 0x80000000u ? type | 0x80000000u : type;
    for (Registration *each = registrations; each; each = each->next)
        if (each->object == object && each->is_process == is_process && !each->closing) {
            enqueue(each, flagged, status, data);
            delivered = 1;
        }
    if (!sticky) return;
    Sticky *made = calloc(1, sizeof *made);
    *made = (Sticky){flagged, status, data ? strdup(data) : NULL, delivered, NULL};
    made->type = type;
    Sticky **last = is_process ? &((Process *)object)->sticky : &((System *)object)->sticky;
    while (*last) last = &(*last)->next;
    *last = made;
}

void emit(void *object, int is_process, uint32_t type, uint32_t status, const char *data, int sticky) {
    locked();
    emit_locked(object, is_process, type, status, data, sticky);
    unlocked();
}

/* ---- compute systems ---- */

static System *systems;
static uint32_t next_pid = 0x1000;

System *first_system(void) { return systems; }

static System *find_locked(const char *id) {
    for (System *each = systems; each; each = each->next)
        if (each->listed && !strcmp(each->id, id)) return each;
    return NULL;
}

System *system_find(const char *id) {
    locked();
    System *found = find_locked(id);
    unlocked();
    return found;
}

static const char *const SCHEMA_1[] = {
    "SystemType", "Name", "Owner", "VolumePath", "IgnoreFlushesDuringBoot", "LayerFolderPath", "Layers", "Credentials",
    "ProcessorCount", "ProcessorWeight", "ProcessorMaximum", "StorageIOPSMaximum", "StorageBandwidthMaximum",
    "StorageSandboxSize", "MemoryMaximumInMB", "HostName", "MappedDirectories", "MappedPipes", "SandboxPath",
    "HvPartition", "EndpointList", "NetworkSharedContainerName", "HvRuntime", "Servicing", "AllowUnqualifiedDNSQuery",
    "DNSSearchList", "ContainerType", "TerminateOnLastHandleClosed", "MappedVirtualDisks", "AssignedDevices", NULL};
static const char *const SCHEMA_2[] = {"Owner", "SchemaVersion", "ShouldTerminateOnLastHandleClosed",
                                       "HostingSystemId", "HostedSystem", "Container", NULL};

static int configuration_is_good(const Json *document, int schema, const char *id) {
    if (schema == 2)
        return json_only(document, SCHEMA_2) && json_get(json_get(document, "SchemaVersion"), "Major") &&
               json_get(json_get(document, "Container"), "Storage");
    const Json *runtime = json_get(document, "HvRuntime");
    int hyper_v = json_true(document, "HvPartition");
    if (!json_only(document, SCHEMA_1) || strcmp(json_text(document, "SystemType"), "Container")) return 0;
    if (strcmp(json_text(document, "Name"), id) || !json_get(document, "Layers")) return 0;
    if (hyper_v) return *json_text(runtime, "ImagePath") && !*json_text(document, "VolumePath");
    const char *volume = json_text(document, "VolumePath");
    return *volume && volume[strlen(volume) - 1] != '\\' && !runtime;
}

uint32_t system_create(const char *id, const char *configuration, int schema, System **made) {
    Json *document = json_parse(configuration);
    if (!document || !configuration_is_good(document, schema, id)) {
        json_free(document);
        return INVALID_JSON;
    }
    locked();
    if (find_locked(id)) {
        unlocked();
        json_free(document);
        return ALREADY_EXISTS;
    }
    System *system = calloc(1, sizeof *system);
    system->id = strdup(id);
    system->owner = strdup(json_text(document, "Owner"));
    system->image_path = strdup(json_text(json_get(document, "HvRuntime"), "ImagePath"));
    system->hyper_v = json_true(document, "HvPartition");
    system->servicing = json_true(document, "Servicing");
    system->ends_with_handles = json_true(document, "TerminateOnLastHandleClosed") ||
                                json_true(document, "ShouldTerminateOnLastHandleClosed");
    system->state = CREATED;
    system->schema = schema;
    system->listed = 1;
    system->handles = 1;
    system->updates_pending = option("updates_pending", 0);
    system->next = systems;
    systems = system;
    unlocked();
    json_free(document);
    *made = system;
    return OK;
}

/* With the lock held. */
static void stopped(System *system, uint32_t status) {
    if (system->state == STOPPED) return;
    system->state = STOPPED;
    system->listed = 0;
    char *data = NULL;
    if (system->schema == 2)
        data = formatted("{\"Status\":%d,\"ExitType\":\"%s\"}", (int32_t)status, status ? "UnexpectedExit" : "GracefulExit");
    emit_locked(system, 0, SYSTEM_EXITED, status, data, 1);
    free(data);
    pthread_cond_broadcast(&changed);
}

typedef struct {
    System *system;
    uint32_t type, status;
    int softly;
} Due;

static void freeze(System *system, int thaw) {
    for (Process *each = system->processes; each; each = each->next)
        if (each->has_child && !each->exited) child_freeze(&each->child, thaw);
}

static void apply(System *system, uint32_t type, uint32_t status) {
    if (status & 0x80000000u) {
        if (type == CREATE_COMPLETED) system->listed = 0, system->state = STOPPED;
        return;
    }
    if (system->state == STOPPED) return;
    if (type == START_COMPLETED || type == RESUME_COMPLETED) system->state = RUNNING;
    if (type == PAUSE_COMPLETED) system->state = PAUSED;
    if (type == PAUSE_COMPLETED || type == RESUME_COMPLETED) freeze(system, type == RESUME_COMPLETED);
}

static void fire(void *argument) {
    Due *due = argument;
    locked();
    apply(due->system, due->type, due->status);
    emit_locked(due->system, 0, due->type, due->status, NULL, 1);
    unlocked();
    free(due);
}

void complete(System *system, uint32_t type, const Call *call, int default_ms) {
    uint32_t status = call->has_status ? call->status : OK;
    if (call->completion == COMPLETE_NEVER) return;
    if (call->completion == COMPLETE_NOW) {
        locked();
        apply(system, type, status);
        unlocked();
        return;
    }
    Due *due = malloc(sizeof *due);
    *due = (Due){system, type, status, 0};
    later(call->completion_ms ? call->completion_ms : default_ms, fire, due);
}

uint32_t system_start(System *system, const Call *call) {
    locked();
    uint32_t bad = system->state == STOPPED ? ALREADY_STOPPED : system->started ? INVALID_STATE : OK;
    if (!bad) system->started = 1;
    unlocked();
    if (bad) return bad;
    complete(system, START_COMPLETED, call, 1);
    return call->completion == COMPLETE_NOW ? OK : PENDING;
}

uint32_t system_pause(System *system, const Call *call, int resume) {
    locked();
    uint32_t bad = system->state == STOPPED ? ALREADY_STOPPED : OK;
    if (!bad && (!system->hyper_v || system->state != (resume ? PAUSED : RUNNING))) bad = INVALID_STATE;
    unlocked();
    if (bad) return bad;
    complete(system, resume ? RESUME_COMPLETED : PAUSE_COMPLETED, call, 1);
    return call->completion == COMPLETE_NOW ? OK : PENDING;
}

static int anybody_alive(System *system, uint32_t deadline_ms) {
    for (uint32_t waited = 0;; waited += 2) {
        locked();
        int alive = 0;
        for (Process *each = system->processes; each; each = each->next) alive |= !each->exited;
        unlocked();
        if (!alive || waited >= deadline_ms) return alive;
        sleep_ms(2);
    }
}

static void kill_all(System *system, int softly) {
    locked();
    freeze(system, 1);
    for (Process *each = system->processes; each; each = each->next)
        if (each->has_child && !each->exited) child_kill(&each->child, softly);
    unlocked();
}

static void end(void *argument) {
    Due *due = argument;
    System *system = due->system;
    kill_all(system, due->softly);
    if (due->softly && anybody_alive(system, (uint32_t)option("shutdown_ms", 2000))) kill_all(system, 0);
    anybody_alive(system, 10000);
    locked();
    for (Process *each = system->processes; each; each = each->next)
        if (each->has_child) child_kill_group(&each->child);
    stopped(system, due->status);
    unlocked();
    free(due);
}

uint32_t system_end(System *system, const Call *call, int softly) {
    locked();
    uint32_t bad = system->state == STOPPED ? ALREADY_STOPPED : OK;
    int already = system->ending && (softly || system->ending == 2);
    if (!bad && !already) system->ending = softly ? 1 : 2;
    unlocked();
    if (bad) return bad;
    if (already || call->completion == COMPLETE_NEVER) return PENDING;
    Due *due = malloc(sizeof *due);
    *due = (Due){system, SYSTEM_EXITED, call->has_status ? call->status : OK, softly};
    if (call->completion == COMPLETE_NOW) {
        end(due);
        return OK;
    }
    later(call->completion_ms, end, due);
    return PENDING;
}

void system_handle_closed(System *system) {
    locked();
    system->handles--;
    int ends = !system->handles && system->ends_with_handles && system->state != STOPPED;
    unlocked();
    Call quiet = {0};
    if (ends) system_end(system, &quiet, 0);
}

/* The utility VM, or the silo, dies: no process tells its end. */
void system_crash(System *system) {
    locked();
    system->crashed = 1;
    for (Process *each = system->processes; each; each = each->next) each->crashed = 1;
    unlocked();
    kill_all(system, 0);
    anybody_alive(system, 10000);
    locked();
    stopped(system, UNEXPECTED_EXIT);
    unlocked();
}

static const char *const STATES[] = {"Unknown", "Created", "Running", "Paused", "Stopped"};

static const char STATISTICS[] =
    "\"Statistics\":{\"Timestamp\":\"2024-03-05T08:09:10.1234567Z\",\"ContainerStartTime\":"
    "\"2024-03-05T08:00:00.7654321Z\",\"Uptime100ns\":5493580246,\"Memory\":{\"MemoryUsageCommitBytes\":73400320,"
    "\"MemoryUsageCommitPeakBytes\":94371840,\"MemoryUsagePrivateWorkingSetBytes\":41943040},\"Processor\":"
    "{\"TotalRuntime100ns\":31250000,\"RuntimeUser100ns\":12500000,\"RuntimeKernel100ns\":18750000},\"Storage\":"
    "{\"ReadCountNormalized\":812,\"ReadSizeBytes\":14680064,\"WriteCountNormalized\":96,\"WriteSizeBytes\":1048576},"
    "\"Network\":[{\"BytesReceived\":4096,\"BytesSent\":2048,\"PacketsReceived\":12,\"PacketsSent\":9,"
    "\"DroppedPacketsIncoming\":0,\"DroppedPacketsOutgoing\":0,\"EndpointId\":\"e\",\"InstanceId\":\"a1\"}]}";

static char *basic(System *system) {
    Json quoted = {.kind = J_STRING};
    (void)quoted;
    char *image = strdup(system->image_path), *at = image;
    for (; *at; at++)
        if (*at == '\\') *at = '/';
    char *text = formatted(
        "\"Id\":\"%s\",\"Name\":\"%s\",\"SystemType\":\"Container\",\"Owner\":\"%s\",\"State\":\"%s\",\"RuntimeOsType\":"
        "\"Windows\",\"RuntimeId\":\"00000000-0000-0000-0000-000000000000\",\"IsRuntimeTemplate\":%s,"
        "\"RuntimeImagePath\":\"%s\"",
        system->id, system->id, system->owner, STATES[system->state], system->template_vm ? "true" : "false", image);
    free(image);
    return text;
}

static char *joined(char *one, const char *separator, char *two) {
    char *both = formatted("%s%s%s", one, separator, two);
    free(one);
    free(two);
    return both;
}

uint32_t system_properties(System *system, const char *query, char **answer) {
    Json *asked = json_parse(*query ? query : "{}");
    static const char *const KEYS[] = {"PropertyTypes", NULL};
    if (!asked || !json_only(asked, KEYS)) {
        json_free(asked);
        return INVALID_JSON;
    }
    const Json *types = json_get(asked, "PropertyTypes");
    locked();
    uint32_t bad = system->state == STOPPED ? ALREADY_STOPPED : OK;
    char *text = bad ? NULL : basic(system);
    if (text && json_has(types, "Statistics")) text = joined(text, ",", strdup(STATISTICS));
    if (text && json_has(types, "PendingUpdates"))
        text = joined(text, ",", formatted("\"AreUpdatesPending\":%s", system->updates_pending ? "true" : "false"));
    if (text && json_has(types, "ProcessList")) {
        char *list = strdup("");
        for (Process *each = system->processes; each; each = each->next)
            if (!each->exited)
                list = joined(list, *list ? "," : "", formatted(
                    "{\"ProcessId\":%u,\"ImageName\":\"prog.exe\",\"CreateTimestamp\":\"2024-03-05T08:00:02.0000000Z\","
                    "\"UserTime100ns\":156250,\"KernelTime100ns\":312500,\"MemoryCommitBytes\":2162688,"
                    "\"MemoryWorkingSetPrivateBytes\":618496,\"MemoryWorkingSetSharedBytes\":2490368}", each->pid));
        text = joined(text, ",\"ProcessList\":[", joined(list, "]", strdup("")));
    }
    unlocked();
    json_free(asked);
    if (text) *answer = joined(strdup("{"), "", joined(text, "}", strdup("")));
    return bad;
}

uint32_t systems_enumerated(const char *query, char **answer) {
    Json *asked = json_parse(*query ? query : "{}");
    static const char *const KEYS[] = {"Ids", "Names", "Types", "Owners", NULL};
    if (!asked || !json_only(asked, KEYS)) {
        json_free(asked);
        return INVALID_JSON;
    }
    const Json *owners = json_get(asked, "Owners"), *ids = json_get(asked, "Ids");
    char *list = strdup("");
    locked();
    for (System *each = systems; each; each = each->next) {
        if (!each->listed || (owners && !json_has(owners, each->owner)) || (ids && !json_has(ids, each->id))) continue;
        list = joined(list, *list ? ",{" : "{", joined(basic(each), "}", strdup("")));
    }
    unlocked();
    json_free(asked);
    *answer = joined(strdup("["), "", joined(list, "]", strdup("")));
    return OK;
}

/* ---- processes ---- */

static char *status_of(const Process *process) {
    return formatted("{\"ProcessId\":%u,\"Exited\":%s,\"ExitCode\":%u,\"LastWaitResult\":%d}", process->pid,
                     process->exited ? "true" : "false", process->code, process->last_wait);
}

static void wait_for_child(void *argument) {
    Process *process = argument;
    System *system = process->system;
    uint32_t code = child_wait(&process->child);
    locked();
    process->code = code;
    process->last_wait = option("last_wait", 0);
    process->exited = 1;
    char *data = option("no_exit_data", 0) ? NULL : status_of(process);
    if (!process->crashed && !option("no_process_exit", 0)) emit_locked(process, 1, PROCESS_EXITED, OK, data, 1);
    free(data);
    int ends = system->servicing && !code && !system->ending;
    if (ends) system->ending = 2;
    pthread_cond_broadcast(&changed);
    unlocked();
    if (ends && !option("servicing_never_ends", 0)) {
        Due *due = malloc(sizeof *due);
        *due = (Due){system, SYSTEM_EXITED, OK, 0};
        later(5, end, due);
    }
}

static void tell_size(const Process *process) {
    FILE *file = *process->console_file ? fopen(process->console_file, "wb") : NULL;
    if (!file) return;
    fprintf(file, "%d %d\n", process->height, process->width);
    fclose(file);
}

uint32_t process_create(System *system, const char *document, Process **made, ProcessInformation *info) {
    static const char *const KEYS[] = {
        "ApplicationName", "CommandLine", "CommandArgs", "User", "WorkingDirectory", "Environment", "EmulateConsole",
        "CreateStdInPipe", "CreateStdOutPipe", "CreateStdErrPipe", "ConsoleSize", "CreateInUtilityVm",
        "OCISpecification", "RestrictedToken", "UseExistingLogin", "UseLegacyConsole", NULL};
    Json *asked = json_parse(document);
    const Json *size = json_get(asked, "ConsoleSize");
    if (!asked || !json_only(asked, KEYS) || !size || size->kind != J_LIST || !size->first || !size->first->next) {
        json_free(asked);
        return INVALID_JSON;
    }
    locked();
    uint32_t bad = system->state == STOPPED ? ALREADY_STOPPED : system->state != RUNNING || system->ending ? INVALID_STATE : OK;
    unlocked();
    ChildPlan plan = {
        .command_line = json_text(asked, "CommandLine"),
        .directory = json_text(asked, "WorkingDirectory"),
        .environment = json_get(asked, "Environment"),
        .want_in = json_true(asked, "CreateStdInPipe"),
        .want_out = json_true(asked, "CreateStdOutPipe"),
        .want_err = json_true(asked, "CreateStdErrPipe"),
        .console = json_true(asked, "EmulateConsole"),
    };
    if (!bad && plan.console && plan.want_err) bad = BAD_PARAMETER;
    Process *process = calloc(1, sizeof *process);
    process->system = system;
    process->console = plan.console;
    process->height = (int)size->first->number;
    process->width = (int)size->first->next->number;
    if (plan.console && text_option("console_directory")) {
        static int consoles;
        snprintf(process->console_file, sizeof process->console_file, "%s/console-%d", text_option("console_directory"), ++consoles);
        strcpy(plan.console_file, process->console_file);
        tell_size(process);
    }
    uint32_t ignored;
    uint32_t failed = bad ? 0 : child_start(&process->child, &plan, &ignored, process->std);
    json_free(asked);
    if (bad || failed) {
        free(process);
        return bad ? bad : WIN32_ERROR(failed);
    }
    locked();
    process->has_child = 1;
    process->handles = 1;
    process->pid = next_pid += 4;
    process->next = system->processes;
    system->processes = process;
    *info = (ProcessInformation){process->pid, 0, {process->std[0], process->std[1], process->std[2]}};
    unlocked();
    int early_ms = option("exit_before_create_returns_ms", 0);
    later(0, wait_for_child, process);
    if (early_ms) sleep_ms(early_ms);
    *made = process;
    return OK;
}

Process *process_find(System *system, uint32_t pid) {
    locked();
    Process *found = system->processes;
    while (found && found->pid != pid) found = found->next;
    if (found && found->exited) found = NULL;
    unlocked();
    return found;
}

uint32_t process_kill(Process *process) {
    locked();
    uint32_t bad = process->system->state == STOPPED || process->exited ? ELEMENT_NOT_FOUND : OK;
    if (!bad) child_kill(&process->child, 0);
    unlocked();
    return bad;
}

uint32_t process_status(Process *process, char **answer) {
    locked();
    uint32_t bad = process->crashed ? PIPE_BROKEN : OK;
    if (!bad) *answer = status_of(process);
    unlocked();
    return bad;
}

uint32_t process_modify(Process *process, const char *settings) {
    static const char *const KEYS[] = {"Operation", "ConsoleSize", "CloseHandle", NULL};
    Json *asked = json_parse(settings);
    if (!asked || !json_only(asked, KEYS)) {
        json_free(asked);
        return INVALID_JSON;
    }
    const char *operation = json_text(asked, "Operation");
    uint32_t bad = OK;
    locked();
    if (process->exited) {
        bad = ELEMENT_NOT_FOUND;
    } else if (!strcmp(operation, "ConsoleSize")) {
        const Json *size = json_get(asked, "ConsoleSize");
        const Json *height = json_get(size, "Height"), *width = json_get(size, "Width");
        if (!process->console || !height || !width) bad = BAD_PARAMETER;
        else {
            process->height = (int)height->number;
            process->width = (int)width->number;
            tell_size(process);
        }
    } else if (!strcmp(operation, "CloseHandle")) {
        if (strcmp(json_text(json_get(asked, "CloseHandle"), "Handle"), "StdIn")) bad = BAD_PARAMETER;
        else child_close_stdin(&process->child);
    } else {
        bad = BAD_PARAMETER;
    }
    unlocked();
    json_free(asked);
    return bad;
}

uint32_t process_information(Process *process, ProcessInformation *info) {
    locked();
    info->pid = process->pid;
    info->reserved = 0;
    child_more_handles(&process->child, info->std);
    unlocked();
    return OK;
}

/* ---- what a test asks ---- */

/* One line for each thing that the caller has not given back. */
API int double_leaks(char *buffer, int size) {
    char *text = strdup("");
    locked();
    if (live_strings()) text = joined(text, "", formatted("%d strings not freed\n", live_strings()));
    for (size_t at = 0; at < entry_count; at++)
        if (entries[at].open) text = joined(text, "", formatted("not closed: %s\n", entries[at].label));
    for (System *system = systems; system; system = system->next) {
        if (system->state != STOPPED && !system->template_vm)
            text = joined(text, "", formatted("still there: system %s\n", system->id));
        for (Process *process = system->processes; process; process = process->next)
            for (int which = 0; which < 3; which++)
                if (std_handle_open(process->std[which]))
                    text = joined(text, "", formatted("std handle %d of a process in %s not closed\n", which, system->id));
    }
    unlocked();
    int needed = (int)strlen(text);
    if (buffer && size > 0) snprintf(buffer, (size_t)size, "%s", text);
    free(text);
    return needed;
}

/* Notify a system (pid 0) or one of its processes of anything. Returns whether there is such a thing. */
API int double_notify(const char *id, uint32_t pid, uint32_t type, uint32_t status, const char *data) {
    locked();
    System *system = systems;
    while (system && strcmp(system->id, id)) system = system->next;
    Process *process = system && pid ? system->processes : NULL;
    while (process && process->pid != pid) process = process->next;
    void *object = pid ? (void *)process : (void *)system;
    if (object)
        for (Registration *each = registrations; each; each = each->next)
            if (each->object == object && each->is_process == !!pid) enqueue(each, type, status, data);
    unlocked();
    return object != NULL;
}

API int double_crash(const char *id) {
    System *system = system_find(id);
    if (system) system_crash(system);
    return system != NULL;
}

/* A compute system that nobody here has a handle of: left over, or a template of utility VMs. */
API int double_left_over(const char *id, const char *owner, int template_vm, const char *image_path) {
    System *system = calloc(1, sizeof *system);
    *system = (System){.id = strdup(id), .owner = strdup(owner), .image_path = strdup(image_path), .state = RUNNING};
    system->listed = system->started = 1;
    system->template_vm = template_vm;
    locked();
    system->next = systems;
    systems = system;
    unlocked();
    return 1;
}

/* height << 16 | width of a process's console. */
API int double_console(const char *id, uint32_t pid) {
    System *system = system_find(id);
    Process *process = system ? process_find(system, pid) : NULL;
    return process ? process->height << 16 | process->width : -1;
}

/* Let a late notification come whatever the interpreter does meanwhile. */
static void late(void *argument) {
    System *system = argument;
    emit(system, 0, START_COMPLETED, OK, NULL, 0);
}
API void double_notify_later(const char *id, int ms) {
    System *system = system_find(id);
    if (system) later(ms, late, system);
}

API void double_reset(void) {
    for (System *system = systems; system; system = system->next) {
        kill_all(system, 0);
        anybody_alive(system, 10000);
        locked();
        for (Process *each = system->processes; each; each = each->next)
            if (each->has_child) child_kill_group(&each->child);
        unlocked();
    }
    core_reset();
    while (registrations) registration_close(registrations->token);
    operations_reset();
    layers_reset();
    core_reset();
    locked();
    while (systems) {
        System *system = systems;
        systems = system->next;
        while (system->processes) {
            Process *process = system->processes;
            system->processes = process->next;
            child_free(&process->child);
            free(process);
        }
        free(system->id);
        free(system->owner);
        free(system->image_path);
        free(system);
    }
    for (size_t at = 0; at < entry_count; at++) free(entries[at].label);
    free(entries);
    entries = NULL;
    entry_count = 0;
    unlocked();
}
