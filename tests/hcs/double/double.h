/* A test double of vmcompute.dll and computecore.dll: real handle tables, real processes, faults by script.
 *
 * core.c       strings lent out, the script of faults, the log of calls, threads and time
 * json.c       just enough JSON
 * model.c      compute systems, processes, handles, notifications
 * child_*.c    the program behind a compute process, on each platform
 * vmcompute.c, computecore.c, layers.c   the exported functions
 * control.c    what a test calls
 */
#ifndef DOUBLE_H
#define DOUBLE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

typedef uint16_t wide;
typedef int32_t hresult;

#define OK 0u
#define PENDING 0xC0370103u
#define TERMINATED_DURING_START 0xC0370100u
#define INVALID_STATE 0xC0370105u
#define UNEXPECTED_EXIT 0xC0370106u
#define INVALID_JSON 0xC037010Du
#define SYSTEM_NOT_FOUND 0xC037010Eu
#define ALREADY_EXISTS 0xC037010Fu
#define ALREADY_STOPPED 0xC0370110u
#define INVALID_LAYER 0xC0370112u
#define WIN32_ERROR(code) (0x80070000u | (code))
#define BAD_HANDLE WIN32_ERROR(6)
#define BAD_PARAMETER WIN32_ERROR(87)
#define ELEMENT_NOT_FOUND WIN32_ERROR(1168)
#define PIPE_BROKEN WIN32_ERROR(109)

/* ---- notification types; those of vmcompute are the canonical ones ---- */
#define SYSTEM_EXITED 0x1u
#define CREATE_COMPLETED 0x2u
#define START_COMPLETED 0x3u
#define PAUSE_COMPLETED 0x4u
#define RESUME_COMPLETED 0x5u
#define PROCESS_EXITED 0x10000u
#define SERVICE_DISCONNECT 0x01000000u

/* ---- core.c ---- */
enum { FREE_COTASK = 1, FREE_LOCAL = 2 };
enum { COMPLETE_LATER = 0, COMPLETE_NEVER, COMPLETE_NOW };

typedef struct {
    char function[64];
    int forced;    /* the script gives the code */
    int act;       /* ... and it is done all the same */
    uint32_t code; /* the forced one */
    char *result, *out;
    int completion, completion_ms, has_status;
    uint32_t status;
    wide **result_slot;
    int freer;
} Call;

extern pthread_mutex_t lock;
extern pthread_cond_t changed;

void locked(void);
void unlocked(void);
Call begin(const char *function, wide **result, int freer, const char *argument, const char *second);
hresult finish(Call *call, uint32_t code);
void lend(wide **slot, const char *text, int freer);
char *narrow(const wide *text); /* malloc'ed UTF-8; "" for NULL */
wide *widen(const char *text);  /* malloc'ed */
void complain(const char *format, ...);
void later(int ms, void (*act)(void *), void *argument);
void sleep_ms(int ms);
int option(const char *name, int otherwise);
const char *text_option(const char *name);
char *formatted(const char *format, ...); /* malloc'ed */
void core_reset(void);
int live_strings(void);

/* ---- json.c ---- */
typedef struct Json {
    enum { J_NULL, J_BOOL, J_NUMBER, J_STRING, J_LIST, J_OBJECT } kind;
    char *text, *key;
    double number;
    struct Json *first, *next;
} Json;
Json *json_parse(const char *text);
void json_free(Json *value);
Json *json_get(const Json *object, const char *key);
int json_true(const Json *object, const char *key);
const char *json_text(const Json *object, const char *key);
int json_has(const Json *list, const char *text);
int json_only(const Json *object, const char *const *keys); /* an unknown key is refused */

/* ---- child_*.c ---- */
typedef struct {
    intptr_t number;   /* pid or process handle */
    intptr_t group;    /* job object on Windows */
    intptr_t stdin_copy, stdout_copy, stderr_copy, code_pipe;
} Child;
typedef struct {
    const char *command_line, *directory;
    const Json *environment;
    int want_in, want_out, want_err, console;
    char console_file[512]; /* where the program finds its console's size */
} ChildPlan;
/* Returns a Win32 error, 0 for none. `std` are the caller's ends, 0 for those not asked for. */
uint32_t child_start(Child *child, const ChildPlan *plan, uint32_t *pid, uint64_t std[3]);
uint32_t child_wait(Child *child);
void child_kill(Child *child, int softly);
void child_kill_group(Child *child);
void child_freeze(Child *child, int thaw);
void child_close_stdin(Child *child);
void child_more_handles(Child *child, uint64_t std[3]);
void child_free(Child *child);
int std_handle_open(uint64_t handle);

/* ---- model.c ---- */
enum { HANDLE_SYSTEM = 1, HANDLE_PROCESS, HANDLE_CALLBACK, HANDLE_OPERATION };
enum { CREATED = 1, RUNNING, PAUSED, STOPPED };

typedef struct Sticky {
    uint32_t type, status;
    char *data;
    int delivered;
    struct Sticky *next;
} Sticky;

typedef struct Process Process;

typedef struct System {
    struct System *next;
    char *id, *owner, *image_path;
    int state, hyper_v, servicing, ends_with_handles, template_vm, schema;
    int started, ending, crashed, listed, handles, updates_pending;
    Process *processes;
    Sticky *sticky;
} System;

struct Process {
    Process *next;
    System *system;
    uint32_t pid;
    Child child;
    int has_child, exited, crashed, handles, console, height, width;
    char console_file[512];
    uint32_t code;
    int32_t last_wait;
    uint64_t std[3];
    Sticky *sticky;
};

typedef struct {
    uint32_t pid, reserved;
    uint64_t std[3];
} ProcessInformation;

typedef void (*Deliver)(void *registration, uint32_t type, uint32_t status, const char *data);

uint64_t handle_new(int kind, void *object, const char *label);
void *handle_get(uint64_t token, int kind);
int handle_close(uint64_t token, int kind); /* 0: it was no such handle */

uint32_t system_create(const char *id, const char *configuration, int schema, System **made);
System *system_find(const char *id);
uint32_t system_start(System *system, const Call *call);
uint32_t system_end(System *system, const Call *call, int softly);
uint32_t system_pause(System *system, const Call *call, int resume);
uint32_t system_properties(System *system, const char *query, char **answer);
uint32_t systems_enumerated(const char *query, char **answer);
void system_handle_closed(System *system);
void system_crash(System *system);
void complete(System *system, uint32_t type, const Call *call, int default_ms);

uint32_t process_create(System *system, const char *document, Process **made, ProcessInformation *info);
Process *process_find(System *system, uint32_t pid);
uint32_t process_kill(Process *process);
uint32_t process_status(Process *process, char **answer);
uint32_t process_modify(Process *process, const char *settings);
uint32_t process_information(Process *process, ProcessInformation *info);

uint64_t registration_new(void *object, int is_process, Deliver deliver, void *callback, void *context);
void registration_close(uint64_t token);
void *registration_callback(void *registration);
void *registration_context(void *registration);
void emit(void *object, int is_process, uint32_t type, uint32_t status, const char *data, int sticky);
System *first_system(void);
void operations_reset(void);
void layers_reset(void);

#endif
