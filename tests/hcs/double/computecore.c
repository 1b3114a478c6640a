/* The exported functions of computecore.dll: schema 2, every call tracked by an operation, ends told by events. A
 * library of its own, because both DLLs have functions of the same name. */
#include "double.h"

#include <stdlib.h>
#include <string.h>

typedef struct Operation {
    struct Operation *next;
    int started, done;
    uint32_t code;
    char *document;
    ProcessInformation info;
    int has_info;
    uint64_t token;
} Operation;
static Operation *operations;

typedef struct {
    int32_t type;
    const wide *data;
    void *operation;
} Event;
_Static_assert(sizeof(Event) == 24, "as in the real one");
typedef void (*Callback)(Event *event, void *context);

/* Which callback a handle has: one, taken away by closing it. */
typedef struct Attached {
    struct Attached *next;
    uint64_t handle, registration;
} Attached;
static Attached *attached;

static void deliver(void *registration, uint32_t type, uint32_t status, const char *data) {
    (void)status;
    type &= 0x0FFFFFFF;
    uint32_t told = type == SYSTEM_EXITED || type == PROCESS_EXITED ? type : type == SERVICE_DISCONNECT ? 0x02000000u : 0;
    if (!told) return;
    wide *text = data ? widen(data) : NULL;
    Event event = {(int32_t)told, text, NULL};
    ((Callback)(intptr_t)registration_callback(registration))(&event, registration_context(registration));
    if (text) memset(text, 0xDD, strlen(data) * sizeof *text);
    free(text);
}

API uint64_t HcsCreateOperation(void *context, void *callback) {
    (void)context;
    (void)callback;
    Operation *made = calloc(1, sizeof *made);
    locked();
    made->next = operations;
    operations = made;
    unlocked();
    return made->token = handle_new(HANDLE_OPERATION, made, "operation");
}

API void HcsCloseOperation(uint64_t token) { handle_close(token, HANDLE_OPERATION); }

/* The operation's end; `text` is taken over. */
static void settle(Operation *operation, uint32_t code, char *text) {
    locked();
    operation->code = code;
    operation->document = text;
    operation->done = 1;
    pthread_cond_broadcast(&changed);
    unlocked();
}

static uint32_t waited(uint64_t token, uint32_t timeout_ms, wide **result, ProcessInformation *info) {
    Operation *operation = handle_get(token, HANDLE_OPERATION);
    if (!operation) return BAD_HANDLE;
    if (!operation->started) return 0x80370115u;
    for (uint32_t past = 0;; past++) {
        locked();
        int done = operation->done;
        unlocked();
        if (done) break;
        if (timeout_ms != 0xFFFFFFFFu && past >= timeout_ms) return 0x80370118u;
        sleep_ms(1);
    }
    if (info && !operation->code && !operation->has_info) return BAD_PARAMETER;
    if (info) *info = operation->info;
    if (operation->document) lend(result, operation->document, FREE_LOCAL);
    return operation->code;
}

API hresult HcsWaitForOperationResult(uint64_t token, uint32_t timeout_ms, wide **result) {
    return (hresult)waited(token, timeout_ms, result, NULL);
}
API hresult HcsWaitForOperationResultAndProcessInfo(uint64_t token, uint32_t timeout_ms, ProcessInformation *info, wide **result) {
    return (hresult)waited(token, timeout_ms, result, info);
}

static uint32_t v2(uint32_t code) { return code >> 16 == 0xC037 ? (code & 0xFFFF) | 0x80370000u : code; }

/* A rule's `code` fails the call itself; with `status` the operation fails. */
#define BEGIN(name, argument, second)                                                            \
    Operation *operation = handle_get(tracked, HANDLE_OPERATION);                                \
    Call call = begin(name, NULL, FREE_LOCAL, argument, second);                                 \
    if (!operation) return (hresult)BAD_HANDLE;                                                  \
    operation->started = 1;                                                                      \
    if (call.forced && !call.act) return finish(&call, call.code)

typedef struct {
    Operation *operation;
    uint32_t code;
    char *text;
} Due;
static void settle_due(void *argument) {
    Due *due = argument;
    settle(due->operation, due->code, due->text);
    free(due);
}

static hresult accepted(Operation *operation, Call *call, uint32_t code, char *text) {
    if (call->has_status) code = call->status;
    if (call->out) {
        free(text);
        text = strdup(call->out);
    }
    if (code && !text) text = call->result ? strdup(call->result) : formatted("{\"Error\":%d,\"ErrorMessage\":\"the double says so\"}", (int32_t)code);
    Due *due = malloc(sizeof *due);
    *due = (Due){operation, v2(code), text};
    int never = call->completion == COMPLETE_NEVER, ms = call->completion_ms;
    free(call->result);
    call->result = NULL;
    if (never) {
        free(text);
        free(due);
    } else if (ms) {
        later(ms, settle_due, due);
    } else {
        settle_due(due);
    }
    call->forced = 0;
    return finish(call, OK);
}

API hresult HcsEnumerateComputeSystems(const wide *query, uint64_t tracked) {
    char *asked = narrow(query), *text = NULL;
    BEGIN("HcsEnumerateComputeSystems", asked, NULL);
    uint32_t code = systems_enumerated(asked, &text);
    free(asked);
    return accepted(operation, &call, code, text);
}

API hresult HcsCreateComputeSystem(const wide *id, const wide *configuration, uint64_t tracked, void *security, uint64_t *made_handle) {
    (void)security;
    char *name = narrow(id), *document = narrow(configuration);
    BEGIN("HcsCreateComputeSystem", name, document);
    System *made = NULL;
    uint32_t code = system_create(name, document, 2, &made);
    if (!code) *made_handle = handle_new(HANDLE_SYSTEM, made, name);
    if (made && call.has_status && call.status) made->listed = 0, made->state = STOPPED;
    free(name);
    free(document);
    return accepted(operation, &call, code, NULL);
}

API hresult HcsOpenComputeSystem(const wide *id, uint32_t access, uint64_t *opened) {
    char *name = narrow(id);
    Call call = begin("HcsOpenComputeSystem", NULL, FREE_LOCAL, name, NULL);
    System *found = access == 0x10000000u ? system_find(name) : NULL;
    if (call.forced && !call.act) found = NULL;
    if (found) {
        locked();
        found->handles++;
        unlocked();
        *opened = handle_new(HANDLE_SYSTEM, found, name);
    }
    free(name);
    return finish(&call, found ? OK : v2(SYSTEM_NOT_FOUND));
}

static void detach(uint64_t handle) {
    locked();
    Attached **at = &attached;
    while (*at && (*at)->handle != handle) at = &(*at)->next;
    Attached *found = *at;
    if (found) *at = found->next;
    unlocked();
    if (!found) return;
    registration_close(found->registration);
    handle_close(found->registration, HANDLE_CALLBACK);
    free(found);
}

static hresult attach(uint64_t handle, void *object, int is_process, void *callback, void *context) {
    Attached *made = calloc(1, sizeof *made);
    made->handle = handle;
    made->registration = registration_new(object, is_process, deliver, callback, context);
    locked();
    made->next = attached;
    attached = made;
    unlocked();
    return 0;
}

API void HcsCloseComputeSystem(uint64_t token) {
    Call call = begin("HcsCloseComputeSystem", NULL, FREE_LOCAL, NULL, NULL);
    System *system = handle_get(token, HANDLE_SYSTEM);
    detach(token);
    if (handle_close(token, HANDLE_SYSTEM)) system_handle_closed(system);
    finish(&call, OK);
}

API hresult HcsSetComputeSystemCallback(uint64_t token, int32_t options, void *context, void *callback) {
    Call call = begin("HcsSetComputeSystemCallback", NULL, FREE_LOCAL, NULL, NULL);
    System *system = handle_get(token, HANDLE_SYSTEM);
    if (call.forced) return finish(&call, call.code);
    if (!system || options) return finish(&call, BAD_PARAMETER);
    attach(token, system, 0, callback, context);
    return finish(&call, OK);
}

#define ON_SYSTEM(name)                                        \
    System *system = handle_get(token, HANDLE_SYSTEM);         \
    if (!system) return (hresult)BAD_HANDLE;                   \
    char *asked = narrow(options);                             \
    BEGIN(name, system->id, asked);                            \
    free(asked)

static uint32_t not_pending(uint32_t code) { return code == PENDING ? OK : code; }

/* The model completes by notifications, which nobody gets here; the operation is settled instead. */
static hresult started(Operation *operation, Call *call, System *system, uint32_t (*act)(System *, const Call *)) {
    Call at_once = *call;
    at_once.completion = COMPLETE_NOW;
    at_once.has_status = 0;
    uint32_t code = call->completion == COMPLETE_NEVER || call->has_status ? OK : not_pending(act(system, &at_once));
    return accepted(operation, call, code, NULL);
}
static uint32_t pause_it(System *system, const Call *call) { return system_pause(system, call, 0); }
static uint32_t resume_it(System *system, const Call *call) { return system_pause(system, call, 1); }

API hresult HcsStartComputeSystem(uint64_t token, uint64_t tracked, const wide *options) {
    ON_SYSTEM("HcsStartComputeSystem");
    return started(operation, &call, system, system_start);
}
API hresult HcsPauseComputeSystem(uint64_t token, uint64_t tracked, const wide *options) {
    ON_SYSTEM("HcsPauseComputeSystem");
    return started(operation, &call, system, pause_it);
}
API hresult HcsResumeComputeSystem(uint64_t token, uint64_t tracked, const wide *options) {
    ON_SYSTEM("HcsResumeComputeSystem");
    return started(operation, &call, system, resume_it);
}

static hresult ended(Operation *operation, Call *call, System *system, int softly) {
    uint32_t code = not_pending(system_end(system, call, softly));
    if (code) {
        free(call->result);
        call->result = NULL;
        return finish(call, v2(code));
    }
    call->has_status = 0;
    return accepted(operation, call, OK, NULL);
}
API hresult HcsShutDownComputeSystem(uint64_t token, uint64_t tracked, const wide *options) {
    ON_SYSTEM("HcsShutDownComputeSystem");
    return ended(operation, &call, system, 1);
}
API hresult HcsTerminateComputeSystem(uint64_t token, uint64_t tracked, const wide *options) {
    ON_SYSTEM("HcsTerminateComputeSystem");
    return ended(operation, &call, system, 0);
}

API hresult HcsGetComputeSystemProperties(uint64_t token, uint64_t tracked, const wide *options) {
    System *system = handle_get(token, HANDLE_SYSTEM);
    if (!system) return (hresult)BAD_HANDLE;
    char *query = narrow(options), *text = NULL;
    BEGIN("HcsGetComputeSystemProperties", system->id, query);
    uint32_t code = system_properties(system, query, &text);
    free(query);
    return accepted(operation, &call, code, text);
}
API hresult HcsModifyComputeSystem(uint64_t token, uint64_t tracked, const wide *options, void *identity) {
    (void)identity;
    ON_SYSTEM("HcsModifyComputeSystem");
    return accepted(operation, &call, OK, NULL);
}

API hresult HcsCreateProcess(uint64_t token, const wide *options, uint64_t tracked, void *security, uint64_t *process) {
    (void)security;
    System *system = handle_get(token, HANDLE_SYSTEM);
    if (!system) return (hresult)BAD_HANDLE;
    char *document = narrow(options);
    BEGIN("HcsCreateProcess", system->id, document);
    Process *made = NULL;
    uint32_t code = process_create(system, document, &made, &operation->info);
    free(document);
    if (!code) {
        operation->has_info = 1;
        *process = handle_new(HANDLE_PROCESS, made, "process");
    }
    return accepted(operation, &call, code, NULL);
}

API hresult HcsOpenProcess(uint64_t token, uint32_t pid, uint32_t access, uint64_t *process) {
    Call call = begin("HcsOpenProcess", NULL, FREE_LOCAL, NULL, NULL);
    System *system = handle_get(token, HANDLE_SYSTEM);
    Process *found = system && access == 0x10000000u ? process_find(system, pid) : NULL;
    if (found) *process = handle_new(HANDLE_PROCESS, found, "opened process");
    return finish(&call, found ? OK : ELEMENT_NOT_FOUND);
}

API void HcsCloseProcess(uint64_t token) {
    Call call = begin("HcsCloseProcess", NULL, FREE_LOCAL, NULL, NULL);
    detach(token);
    handle_close(token, HANDLE_PROCESS);
    finish(&call, OK);
}

API hresult HcsSetProcessCallback(uint64_t token, int32_t options, void *context, void *callback) {
    Call call = begin("HcsSetProcessCallback", NULL, FREE_LOCAL, NULL, NULL);
    Process *process = handle_get(token, HANDLE_PROCESS);
    if (call.forced) return finish(&call, call.code);
    if (!process || options) return finish(&call, BAD_PARAMETER);
    attach(token, process, 1, callback, context);
    return finish(&call, OK);
}

#define ON_PROCESS(name)                                        \
    Process *process = handle_get(token, HANDLE_PROCESS);       \
    if (!process) return (hresult)BAD_HANDLE;                   \
    char *asked = narrow(options);                              \
    BEGIN(name, NULL, asked)

API hresult HcsTerminateProcess(uint64_t token, uint64_t tracked, const wide *options) {
    ON_PROCESS("HcsTerminateProcess");
    free(asked);
    return accepted(operation, &call, process_kill(process), NULL);
}
API hresult HcsGetProcessInfo(uint64_t token, uint64_t tracked) {
    const wide *options = NULL;
    ON_PROCESS("HcsGetProcessInfo");
    free(asked);
    operation->has_info = 1;
    return accepted(operation, &call, process_information(process, &operation->info), NULL);
}
API hresult HcsGetProcessProperties(uint64_t token, uint64_t tracked, const wide *options) {
    ON_PROCESS("HcsGetProcessProperties");
    free(asked);
    char *text = NULL;
    uint32_t code = process_status(process, &text);
    return accepted(operation, &call, code, text);
}
API hresult HcsModifyProcess(uint64_t token, uint64_t tracked, const wide *options) {
    ON_PROCESS("HcsModifyProcess");
    uint32_t code = process_modify(process, asked);
    free(asked);
    return accepted(operation, &call, code, NULL);
}

API hresult HcsGetServiceProperties(const wide *query, wide **result) {
    char *asked = narrow(query);
    Call call = begin("HcsGetServiceProperties", result, FREE_LOCAL, asked, NULL);
    free(asked);
    if (!call.forced)
        lend(result, call.out ? call.out : "{\"Properties\":[{\"SupportedSchemaVersions\":[{\"Major\":1,\"Minor\":0},{\"Major\":2,\"Minor\":1}]}]}", FREE_LOCAL);
    return finish(&call, OK);
}

/* End the operations that a rule keeps from their end; who waits for one must be gone before the reset. */
API void double_settle(void) {
    locked();
    for (Operation *each = operations; each; each = each->next)
        if (each->started && !each->done) {
            each->code = 0x80370107u;
            each->done = 1;
        }
    unlocked();
}

void operations_reset(void) {
    while (operations) {
        Operation *next = operations->next;
        free(operations->document);
        free(operations);
        operations = next;
    }
    while (attached) {
        Attached *next = attached->next;
        free(attached);
        attached = next;
    }
}
