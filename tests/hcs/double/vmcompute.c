/* The exported functions of vmcompute.dll: schema 1, notifications by registered callbacks. */
#include "double.h"

#include <stdlib.h>
#include <string.h>

typedef void (*Callback)(uint32_t type, void *context, hresult status, const wide *data);

static void deliver(void *registration, uint32_t type, uint32_t status, const char *data) {
    Callback callback = (Callback)(intptr_t)registration_callback(registration);
    wide *text = data ? widen(data) : NULL;
    callback(type, registration_context(registration), (hresult)status, text);
    /* Borrowed for the call only: whoever kept the address reads rubbish. */
    if (text) memset(text, 0xDD, strlen(data) * sizeof *text);
    free(text);
}

#define BEGIN(name, argument, second)                                  \
    char *first_ = narrow(argument), *second_ = narrow(second);        \
    Call call = begin(name, result, FREE_COTASK, first_, second_);     \
    if (call.forced && !call.act) {                                    \
        free(first_);                                                  \
        free(second_);                                                 \
        return finish(&call, call.code);                               \
    }
#define END(code)                       \
    do {                                \
        uint32_t code_ = (code);        \
        free(first_);                   \
        free(second_);                  \
        return finish(&call, code_);    \
    } while (0)

static uint32_t answer(Call *call, uint32_t code, char *text, wide **slot) {
    if (call->out) {
        lend(slot, call->out, FREE_COTASK);
        free(text);
        return OK;
    }
    if (text) lend(slot, text, FREE_COTASK);
    free(text);
    return code;
}

API hresult HcsEnumerateComputeSystems(const wide *query, wide **systems, wide **result) {
    BEGIN("HcsEnumerateComputeSystems", query, NULL);
    char *text = NULL;
    uint32_t code = systems_enumerated(first_, &text);
    END(answer(&call, code, text, systems));
}

API hresult HcsCreateComputeSystem(const wide *id, const wide *configuration, void *identity, uint64_t *system, wide **result) {
    (void)identity;
    BEGIN("HcsCreateComputeSystem", id, configuration);
    System *made = NULL;
    uint32_t code = system_create(first_, second_, 1, &made);
    if (!code) {
        *system = handle_new(HANDLE_SYSTEM, made, first_);
        complete(made, CREATE_COMPLETED, &call, 1);
        code = call.completion == COMPLETE_NOW ? OK : PENDING;
    }
    END(code);
}

API hresult HcsOpenComputeSystem(const wide *id, uint64_t *system, wide **result) {
    BEGIN("HcsOpenComputeSystem", id, NULL);
    System *found = system_find(first_);
    if (found) {
        locked();
        found->handles++;
        unlocked();
        *system = handle_new(HANDLE_SYSTEM, found, first_);
    }
    END(found ? OK : SYSTEM_NOT_FOUND);
}

API hresult HcsCloseComputeSystem(uint64_t token) {
    wide **result = NULL;
    BEGIN("HcsCloseComputeSystem", NULL, NULL);
    System *system = handle_get(token, HANDLE_SYSTEM);
    if (!handle_close(token, HANDLE_SYSTEM)) END(BAD_HANDLE);
    system_handle_closed(system);
    END(OK);
}

#define ON_SYSTEM(name, argument)                             \
    System *system = handle_get(token, HANDLE_SYSTEM);        \
    char *id_ = system ? strdup(system->id) : strdup("?");    \
    char *first_ = id_, *second_ = narrow(argument);          \
    Call call = begin(name, result, FREE_COTASK, id_, second_); \
    if (!system) END(BAD_HANDLE);                             \
    if (call.forced && !call.act) END(call.code)

API hresult HcsStartComputeSystem(uint64_t token, const wide *options, wide **result) {
    ON_SYSTEM("HcsStartComputeSystem", options);
    END(system_start(system, &call));
}
API hresult HcsShutdownComputeSystem(uint64_t token, const wide *options, wide **result) {
    ON_SYSTEM("HcsShutdownComputeSystem", options);
    END(system_end(system, &call, 1));
}
API hresult HcsTerminateComputeSystem(uint64_t token, const wide *options, wide **result) {
    ON_SYSTEM("HcsTerminateComputeSystem", options);
    END(system_end(system, &call, 0));
}
API hresult HcsPauseComputeSystem(uint64_t token, const wide *options, wide **result) {
    ON_SYSTEM("HcsPauseComputeSystem", options);
    END(system_pause(system, &call, 0));
}
API hresult HcsResumeComputeSystem(uint64_t token, const wide *options, wide **result) {
    ON_SYSTEM("HcsResumeComputeSystem", options);
    END(system_pause(system, &call, 1));
}
API hresult HcsSaveComputeSystem(uint64_t token, const wide *options, wide **result) {
    ON_SYSTEM("HcsSaveComputeSystem", options);
    END(INVALID_STATE);
}

API hresult HcsGetComputeSystemProperties(uint64_t token, const wide *query, wide **properties, wide **result) {
    ON_SYSTEM("HcsGetComputeSystemProperties", query);
    char *text = NULL;
    uint32_t code = system_properties(system, second_, &text);
    END(answer(&call, code, text, properties));
}

API hresult HcsModifyComputeSystem(uint64_t token, const wide *configuration, wide **result) {
    ON_SYSTEM("HcsModifyComputeSystem", configuration);
    Json *asked = json_parse(second_);
    static const char *const KEYS[] = {"ResourceType", "RequestType", "Settings", NULL};
    int good = json_only(asked, KEYS);
    json_free(asked);
    END(good ? OK : INVALID_JSON);
}

static uint64_t registered(void *object, int is_process, Callback callback, void *context) {
    return registration_new(object, is_process, deliver, (void *)(intptr_t)callback, context);
}

API hresult HcsRegisterComputeSystemCallback(uint64_t token, Callback callback, void *context, uint64_t *registration) {
    wide **result = NULL;
    ON_SYSTEM("HcsRegisterComputeSystemCallback", NULL);
    *registration = registered(system, 0, callback, context);
    END(OK);
}

static hresult unregister(const char *name, uint64_t token) {
    Call call = begin(name, NULL, FREE_COTASK, NULL, NULL);
    if (!handle_close(token, HANDLE_CALLBACK)) return finish(&call, BAD_HANDLE);
    registration_close(token);
    return finish(&call, OK);
}
API hresult HcsUnregisterComputeSystemCallback(uint64_t token) { return unregister("HcsUnregisterComputeSystemCallback", token); }
API hresult HcsUnregisterProcessCallback(uint64_t token) { return unregister("HcsUnregisterProcessCallback", token); }

API hresult HcsCreateProcess(uint64_t token, const wide *parameters, ProcessInformation *info, uint64_t *process, wide **result) {
    ON_SYSTEM("HcsCreateProcess", parameters);
    Process *made = NULL;
    uint32_t code = process_create(system, second_, &made, info);
    if (!code) *process = handle_new(HANDLE_PROCESS, made, "process");
    END(code);
}

API hresult HcsOpenProcess(uint64_t token, uint32_t pid, uint64_t *process, wide **result) {
    ON_SYSTEM("HcsOpenProcess", NULL);
    Process *found = process_find(system, pid);
    if (found) *process = handle_new(HANDLE_PROCESS, found, "opened process");
    END(found ? OK : ELEMENT_NOT_FOUND);
}

#define ON_PROCESS(name, argument)                                         \
    Process *process = handle_get(token, HANDLE_PROCESS);                  \
    char *first_ = formatted("%u", process ? process->pid : 0), *second_ = narrow(argument); \
    Call call = begin(name, result, FREE_COTASK, first_, second_);         \
    if (!process) END(BAD_HANDLE);                                         \
    if (call.forced && !call.act) END(call.code)

API hresult HcsCloseProcess(uint64_t token) {
    wide **result = NULL;
    ON_PROCESS("HcsCloseProcess", NULL);
    END(handle_close(token, HANDLE_PROCESS) ? OK : BAD_HANDLE);
}
API hresult HcsTerminateProcess(uint64_t token, wide **result) {
    ON_PROCESS("HcsTerminateProcess", NULL);
    END(process_kill(process));
}
API hresult HcsSignalProcess(uint64_t token, const wide *options, wide **result) {
    ON_PROCESS("HcsSignalProcess", options);
    END(process_kill(process));
}
API hresult HcsGetProcessInfo(uint64_t token, ProcessInformation *info, wide **result) {
    ON_PROCESS("HcsGetProcessInfo", NULL);
    END(process_information(process, info));
}
API hresult HcsGetProcessProperties(uint64_t token, wide **properties, wide **result) {
    ON_PROCESS("HcsGetProcessProperties", NULL);
    char *text = NULL;
    uint32_t code = process_status(process, &text);
    END(answer(&call, code, text, properties));
}
API hresult HcsModifyProcess(uint64_t token, const wide *settings, wide **result) {
    ON_PROCESS("HcsModifyProcess", settings);
    END(process_modify(process, second_));
}
API hresult HcsRegisterProcessCallback(uint64_t token, Callback callback, void *context, uint64_t *registration) {
    wide **result = NULL;
    ON_PROCESS("HcsRegisterProcessCallback", NULL);
    *registration = registered(process, 1, callback, context);
    END(OK);
}

API hresult HcsGetServiceProperties(const wide *query, wide **properties, wide **result) {
    BEGIN("HcsGetServiceProperties", query, NULL);
    char *text = strdup("{\"Properties\":[{\"SupportedSchemaVersions\":[{\"Major\":1,\"Minor\":0},{\"Major\":2,\"Minor\":1}]}]}");
    END(answer(&call, OK, text, properties));
}
API hresult HcsModifyServiceSettings(const wide *settings, wide **result) {
    BEGIN("HcsModifyServiceSettings", settings, NULL);
    END(OK);
}
