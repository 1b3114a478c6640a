#include "double.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *skip(const char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r') at++;
    return at;
}

static void put_utf8(char **out, unsigned code) {
    char *to = *out;
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xC0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *to++ = (char)(0xE0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    } else {
        *to++ = (char)(0xF0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3F));
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    }
    *out = to;
}

static const char *parse_string(const char *at, char **text) {
    if (*at != '"') return NULL;
    char *out = *text = malloc(strlen(at) + 1);
    for (at++; *at && *at != '"'; at++) {
        if (*at != '\\') {
            *out++ = *at;
            continue;
        }
        at++;
        unsigned code = 0, low = 0;
        switch (*at) {
            case 'n': *out++ = '\n'; break;
            case 't': *out++ = '\t'; break;
            case 'r': *out++ = '\r'; break;
            case 'b': *out++ = '\b'; break;
            case 'f': *out++ = '\f'; break;
            case 'u':
                if (sscanf(at + 1, "%4x", &code) != 1) return NULL;
                at += 4;
                if (code >= 0xD800 && code < 0xDC00 && at[1] == '\\' && at[2] == 'u' && sscanf(at + 3, "%4x", &low) == 1) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    at += 6;
                }
                put_utf8(&out, code);
                break;
            case '\0': return NULL;
            default: *out++ = *at;
        }
    }
    if (*at != '"') return NULL;
    *out = 0;
    return at + 1;
}

static const char *parse_value(const char *at, Json **value, int depth);

static const char *parse_members(const char *at, Json *into, char end, int depth) {
    Json **last = &into->first;
    at = skip(at + 1);
    if (*at == end) return at + 1;
    for (;;) {
        char *key = NULL;
        if (end == '}') {
            at = parse_string(skip(at), &key);
            if (!at) {
                free(key);
                return NULL;
            }
            at = skip(at);
            if (*at++ != ':') {
                free(key);
                return NULL;
            }
        }
        Json *member = NULL;
        at = parse_value(at, &member, depth + 1);
        if (!at) {
            free(key);
            return NULL;
        }
        member->key = key;
        *last = member;
        last = &member->next;
        at = skip(at);
        if (*at == end) return at + 1;
        if (*at++ != ',') return NULL;
    }
}

static const char *parse_value(const char *at, Json **value, int depth) {
    if (depth > 50) return NULL;
    Json *made = calloc(1, sizeof *made);
    const char *rest = NULL;
    at = skip(at);
    if (*at == '"') {
        made->kind = J_STRING;
        rest = parse_string(at, &made->text);
    } else if (*at == '{' || *at == '[') {
        made->kind = *at == '{' ? J_OBJECT : J_LIST;
        rest = parse_members(at, made, *at == '{' ? '}' : ']', depth);
    } else if (!strncmp(at, "true", 4) || !strncmp(at, "false", 5)) {
        made->kind = J_BOOL;
        made->number = *at == 't';
        rest = at + (*at == 't' ? 4 : 5);
    } else if (!strncmp(at, "null", 4)) {
        rest = at + 4;
    } else {
        char *end;
        made->kind = J_NUMBER;
        made->number = strtod(at, &end);
        rest = end == at ? NULL : end;
    }
    if (!rest) {
        json_free(made);
        return NULL;
    }
    *value = made;
    return rest;
}

Json *json_parse(const char *text) {
    Json *value = NULL;
    const char *rest = parse_value(text, &value, 0);
    if (rest && *skip(rest)) {
        json_free(value);
        return NULL;
    }
    return rest ? value : NULL;
}

void json_free(Json *value) {
    while (value) {
        Json *next = value->next;
        json_free(value->first);
        free(value->text);
        free(value->key);
        free(value);
        value = next;
    }
}

Json *json_get(const Json *object, const char *key) {
    if (object && object->kind == J_OBJECT)
        for (Json *member = object->first; member; member = member->next)
            if (!strcmp(member->key, key)) return member;
    return NULL;
}

int json_true(const Json *object, const char *key) {
    const Json *value = json_get(object, key);
    return value && value->kind == J_BOOL && value->number != 0;
}

const char *json_text(const Json *object, const char *key) {
    const Json *value = json_get(object, key);
    return value && value->kind == J_STRING ? value->text : "";
}

int json_has(const Json *list, const char *text) {
    if (list && list->kind == J_LIST)
        for (const Json *member = list->first; member; member = member->next)
            if (member->kind == J_STRING && !strcmp(member->text, text)) return 1;
    return 0;
}

int json_only(const Json *object, const char *const *keys) {
    if (!object || object->kind != J_OBJECT) return 0;
    for (const Json *member = object->first; member; member = member->next) {
        const char *const *key = keys;
        while (*key && strcmp(*key, member->key)) key++;
        if (!*key) return 0;
    }
    return 1;
}
