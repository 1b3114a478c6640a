#include "double.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _WIN32
#include <synchapi.h>
#endif

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

void locked(void) { pthread_mutex_lock(&lock); }
void unlocked(void) { pthread_mutex_unlock(&lock); }

void sleep_ms(int ms) {
    struct timespec span = {ms / 1000, (long)(ms % 1000) * 1000000L};
    nanosleep(&span, NULL);
}

char *formatted(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    char *text = malloc((size_t)size + 1);
    va_start(arguments, format);
    vsnprintf(text, (size_t)size + 1, format, arguments);
    va_end(arguments);
    return text;
}

/* ---- UTF-16 ---- */

char *narrow(const wide *text) {
    size_t units = 0;
    while (text && text[units]) units++;
    char *made = malloc(units * 3 + 1), *out = made;
    for (size_t at = 0; at < units; at++) {
        unsigned code = text[at];
        if (code >= 0xD800 && code < 0xDC00 && at + 1 < units && (text[at + 1] & 0xFC00) == 0xDC00) {
            code = 0x10000 + ((code - 0xD800) << 10) + (text[++at] - 0xDC00u);
            *out++ = (char)(0xF0 | code >> 18);
            *out++ = (char)(0x80 | (code >> 12 & 0x3F));
        } else if (code >= 0x800) {
            *out++ = (char)(0xE0 | code >> 12);
        }
        if (code >= 0x800) *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        else if (code >= 0x80) *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(code >= 0x80 ? 0x80 | (code & 0x3F) : code);
    }
    *out = 0;
    return made;
}

wide *widen(const char *text) {
    wide *made = malloc((strlen(text) + 1) * sizeof *made), *out = made;
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        unsigned code = *at++;
        int more = code >= 0xF0 ? 3 : code >= 0xE0 ? 2 : code >= 0xC0 ? 1 : 0;
        if (more) code &= 0x3Fu >> more;
        while (more-- && *at) code = code << 6 | (*at++ & 0x3F);
        if (code >= 0x10000) {
            *out++ = (wide)(0xD800 + ((code - 0x10000) >> 10));
            code = 0xDC00 + ((code - 0x10000) & 0x3FF);
        }
        *out++ = (wide)code;
    }
    *out = 0;
    return made;
}

/* ---- complaints and the log ---- */

static char *complaints, *calls;

static void append(char **to, const char *line) {
    size_t had = *to ? strlen(*to) : 0;
    *to = realloc(*to, had + strlen(line) + 2);
    strcpy(*to + had, line);
    strcat(*to, "\n");
}

void complain(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    append(&complaints, text);
}

/* ---- strings lent to the caller ---- */

typedef struct Lent {
    struct Lent *next;
    wide *text;
    size_t bytes;
    int freer, freed;
} Lent;
static Lent *lent;

void lend(wide **slot, const char *text, int freer) {
    if (!slot) return;
    Lent *made = calloc(1, sizeof *made);
    made->text = widen(text);
    made->bytes = (strlen(text) + 1) * sizeof(wide);
    made->freer = freer;
    locked();
    made->next = lent;
    lent = made;
    unlocked();
    *slot = made->text;
}

static void give_back(void *pointer, int freer) {
    if (!pointer) return;
    locked();
    Lent *found = lent;
    while (found && found->text != pointer) found = found->next;
    if (!found) complain("freed a string that was never lent: %p", pointer);
    else if (found->freed) complain("freed a string twice");
    else if (found->freer != freer) complain("freed a string with the wrong function");
    if (found && !found->freed) {
        found->freed = 1;
        memset(found->text, 0xDD, found->bytes);
    }
    unlocked();
}

API void double_CoTaskMemFree(void *pointer) { give_back(pointer, FREE_COTASK); }
API void *double_LocalFree(void *pointer) {
    give_back(pointer, FREE_LOCAL);
    return NULL;
}

int live_strings(void) {
    int count = 0;
    for (Lent *each = lent; each; each = each->next) count += !each->freed;
    return count;
}

/* ---- the script ---- */

typedef struct Rule {
    struct Rule *next;
    char function[64];
    int nth, times, seen, used, has_code, act, delay_ms, hang, released;
    int completion, completion_ms, has_status;
    uint32_t code, status;
    char *result, *out;
} Rule;
static Rule *rules;

/* `function key=value ...`; keys: code nth times act delay_ms hang completion (never, now) completion_ms status
 * result out. The last two take the rest up to a blank. Returns whether the line was understood. */
API int double_script(const char *line) {
    Rule *rule = calloc(1, sizeof *rule);
    char *copy = strdup(line), *save = NULL;
    rule->times = 1000000;
    int good = 1;
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');
        if (!value) {
            strncpy(rule->function, word, sizeof rule->function - 1);
            continue;
        }
        *value++ = 0;
        unsigned long number = strtoul(value, NULL, 0);
        if (!strcmp(word, "code")) rule->has_code = 1, rule->code = (uint32_t)number;
        else if (!strcmp(word, "nth")) rule->nth = (int)number;
        else if (!strcmp(word, "times")) rule->times = (int)number;
        else if (!strcmp(word, "act")) rule->act = (int)number;
        else if (!strcmp(word, "delay_ms")) rule->delay_ms = (int)number;
        else if (!strcmp(word, "hang")) rule->hang = (int)number;
        else if (!strcmp(word, "completion"))
            rule->completion = !strcmp(value, "never") ? COMPLETE_NEVER : COMPLETE_NOW;
        else if (!strcmp(word, "completion_ms")) rule->completion_ms = (int)number;
        else if (!strcmp(word, "status")) rule->has_status = 1, rule->status = (uint32_t)number;
        else if (!strcmp(word, "result")) rule->result = strdup(value);
        else if (!strcmp(word, "out")) rule->out = strdup(value);
        else good = 0;
    }
    free(copy);
    locked();
    Rule **last = &rules;
    while (*last) last = &(*last)->next;
    *last = rule;
    unlocked();
    return good && rule->function[0];
}

/* Let the calls of a function go on that a rule keeps hanging. */
API void double_release(const char *function) {
    locked();
    for (Rule *rule = rules; rule; rule = rule->next)
        if (!strcmp(rule->function, function)) rule->released = 1;
    pthread_cond_broadcast(&changed);
    unlocked();
}

static Rule *take(const char *function) {
    Rule *taken = NULL;
    for (Rule *rule = rules; rule; rule = rule->next) {
        if (strcmp(rule->function, function)) continue;
        rule->seen++;
        if (taken || (rule->nth && rule->seen != rule->nth) || rule->used >= rule->times) continue;
        rule->used++;
        taken = rule;
    }
    return taken;
}

Call begin(const char *function, wide **result, int freer, const char *argument, const char *second) {
    Call call = {.result_slot = result, .freer = freer};
    strncpy(call.function, function, sizeof call.function - 1);
    locked();
    if (result && *result) complain("%s: the result was not NULL before the call", function);
    char *line = formatted("%s\t%s\t%s", function, argument ? argument : "", second ? second : "");
    append(&calls, line);
    free(line);
    pthread_cond_broadcast(&changed);
    Rule *rule = take(function);
    if (rule) {
        int delay_ms = rule->delay_ms;
        while (rule->hang && !rule->released) pthread_cond_wait(&changed, &lock);
        call.forced = rule->has_code;
        call.act = rule->act;
        call.code = rule->code;
        call.result = rule->result ? strdup(rule->result) : NULL;
        call.out = rule->out ? strdup(rule->out) : NULL;
        call.completion = rule->completion;
        call.completion_ms = rule->completion_ms;
        call.has_status = rule->has_status;
        call.status = rule->status;
        unlocked();
        if (delay_ms) sleep_ms(delay_ms);
        return call;
    }
    unlocked();
    return call;
}

hresult finish(Call *call, uint32_t code) {
    if (call->forced) code = call->code;
    if (call->result) lend(call->result_slot, call->result, call->freer);
    else if (code & 0x80000000u) {
        char *text = formatted("{\"Error\":%d,\"ErrorMessage\":\"the double says 0x%08x\"}", (int32_t)code, code);
        lend(call->result_slot, text, call->freer);
        free(text);
    }
    free(call->result);
    free(call->out);
    return (hresult)code;
}

/* ---- options ---- */

typedef struct Option {
    struct Option *next;
    char name[64];
    char *value;
} Option;
static Option *options;

API void double_set(const char *name, const char *value) {
    locked();
    Option *made = calloc(1, sizeof *made);
    strncpy(made->name, name, sizeof made->name - 1);
    made->value = strdup(value);
    made->next = options;
    options = made;
    unlocked();
}

const char *text_option(const char *name) {
    for (Option *each = options; each; each = each->next)
        if (!strcmp(each->name, name)) return each->value;
    return NULL;
}

int option(const char *name, int otherwise) {
    const char *text = text_option(name);
    return text ? atoi(text) : otherwise;
}

/* ---- doing things later, on a thread of our own ---- */

typedef struct {
    int ms;
    void (*act)(void *);
    void *argument;
} Task;
static int outstanding;

static void *run_later(void *argument) {
    Task *task = argument;
    sleep_ms(task->ms);
    task->act(task->argument);
    free(task);
    locked();
    outstanding--;
    pthread_cond_broadcast(&changed);
    unlocked();
    return NULL;
}

/* Not to be called while holding the lock. */
void later(int ms, void (*act)(void *), void *argument) {
    Task *task = malloc(sizeof *task);
    *task = (Task){ms, act, argument};
    locked();
    outstanding++;
    unlocked();
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_later, task)) {
        run_later(task);
        return;
    }
    pthread_detach(thread);
}

/* ---- what a test asks ---- */

static int copy_out(const char *text, char *buffer, int size) {
    int needed = text ? (int)strlen(text) : 0;
    if (buffer && size > 0) snprintf(buffer, (size_t)size, "%s", text ? text : "");
    return needed;
}

/* Each gives the text's length; call with NULL first. */
API int double_calls(char *buffer, int size) {
    locked();
    int needed = copy_out(calls, buffer, size);
    unlocked();
    return needed;
}

API int double_complaints(char *buffer, int size) {
    locked();
    int needed = copy_out(complaints, buffer, size);
    unlocked();
    return needed;
}

/* Rules that no call met. */
API int double_unused(char *buffer, int size) {
    char *text = NULL;
    locked();
    for (Rule *rule = rules; rule; rule = rule->next)
        if (!rule->used) append(&text, rule->function);
    unlocked();
    int needed = copy_out(text, buffer, size);
    free(text);
    return needed;
}

void core_reset(void) {
    locked();
    for (Rule *rule = rules; rule; rule = rule->next) rule->released = 1;
    pthread_cond_broadcast(&changed);
    while (outstanding) pthread_cond_wait(&changed, &lock);
    while (rules) {
        Rule *next = rules->next;
        free(rules->result);
        free(rules->out);
        free(rules);
        rules = next;
    }
    while (options) {
        Option *next = options->next;
        free(options->value);
        free(options);
        options = next;
    }
    while (lent) {
        Lent *next = lent->next;
        free(lent->text);
        free(lent);
        lent = next;
    }
    free(calls);
    free(complaints);
    calls = complaints = NULL;
    unlocked();
}
