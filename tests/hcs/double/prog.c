/* The program behind compute processes in tests; on Linux it tells its 32-bit exit code on descriptor 3. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <windows.h>
#define read_some _read
#define write_some _write
static void nap(double seconds) { Sleep((DWORD)(seconds * 1000)); }
#else
#include <time.h>
#include <unistd.h>
#define read_some read
#define write_some write
static void nap(double seconds) {
    struct timespec span = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&span, NULL);
}
#endif

static void leave(uint32_t code) {
    fflush(NULL);
#ifdef _WIN32
    ExitProcess(code);
#else
    if (code > 255 && write(3, &code, sizeof code) < 0) _exit(99);
    _exit((int)(code & 255));
#endif
}

static void put(int fd, const char *text) {
    size_t left = strlen(text);
    while (left) {
        int done = (int)write_some(fd, text, (unsigned)left);
        if (done <= 0) leave(1);
        text += done;
        left -= (size_t)done;
    }
}

static void cat(void) {
    static char buffer[65536];
    int got;
    while ((got = (int)read_some(0, buffer, sizeof buffer)) > 0)
        for (int at = 0; at < got;) {
            int done = (int)write_some(1, buffer + at, (unsigned)(got - at));
            if (done <= 0) leave(1);
            at += done;
        }
}

static void grandchild(char **argv) {
    /* It holds our streams open and lives on. */
#ifdef _WIN32
    _spawnl(_P_NOWAIT, argv[0], argv[0], "sleep", argv[2] ? argv[2] : "1000", NULL);
#else
    if (!fork()) {
        nap(argv[2] ? atof(argv[2]) : 1000);
        _exit(0);
    }
#endif
}

int main(int argc, char **argv) {
#ifdef _WIN32
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
    _setmode(2, _O_BINARY);
#endif
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "exit")) leave(argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 0);
    if (!strcmp(verb, "cat")) cat();
    else if (!strcmp(verb, "args"))
        for (int at = 2; at < argc; at++) put(1, argv[at]), put(1, "\n");
    else if (!strcmp(verb, "echo"))
        for (int at = 2; at < argc; at++) put(1, argv[at]), put(1, at + 1 < argc ? " " : "\n");
    else if (!strcmp(verb, "errecho"))
        for (int at = 2; at < argc; at++) put(2, argv[at]), put(2, at + 1 < argc ? " " : "\n");
    else if (!strcmp(verb, "env"))
        put(1, argc > 2 && getenv(argv[2]) ? getenv(argv[2]) : "unset");
    else if (!strcmp(verb, "sleep")) {
        put(1, argc > 3 ? argv[3] : "");
        nap(argc > 2 ? atof(argv[2]) : 1000);
    } else if (!strcmp(verb, "ignore-term")) {
#ifndef _WIN32
        signal(SIGTERM, SIG_IGN);
#endif
        put(1, "ready\n");
        nap(1000);
    } else if (!strcmp(verb, "flood")) {
        char line[64];
        long count = argc > 2 ? atol(argv[2]) : 1000;
        for (long at = 0; at < count; at++) {
            snprintf(line, sizeof line, "line %07ld of the flood\n", at);
            put(1, line);
        }
    } else if (!strcmp(verb, "size")) {
        for (;;) {
            char line[64] = "";
            FILE *file = fopen(getenv("DOUBLE_CONSOLE") ? getenv("DOUBLE_CONSOLE") : "", "rb");
            if (file && fgets(line, sizeof line, file)) put(1, line);
            if (file) fclose(file);
            nap(0.02);
        }
    } else if (!strcmp(verb, "both")) {
        put(1, "out\n");
        put(2, "err\n");
    } else if (!strcmp(verb, "grandchild")) {
        put(1, "before\n");
        grandchild(argv);
    } else {
        put(2, "unknown verb\n");
        leave(64);
    }
    leave(0);
    return 0;
}
