/* The layer functions of vmcompute.dll: folders on the disk, and the order in which the driver wants its calls. */
#include "double.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef _WIN32
#include <direct.h>
#define make_directory(path) _mkdir(path)
#else
#define make_directory(path) mkdir(path, 0700)
#endif
#include <dirent.h>
#include <unistd.h>

typedef struct Layer {
    struct Layer *next;
    char *path;
    int active, prepared;
} Layer;
static Layer *layers;
static int preparing;

typedef struct {
    uint8_t id[16];
    uint32_t flags;
    const wide *path;
} Descriptor;

typedef struct {
    int32_t flavour;
    const wide *home;
} Driver;

_Static_assert(sizeof(Descriptor) == 32 && offsetof(Descriptor, path) == 24, "as in the real one");
_Static_assert(sizeof(Driver) == 16 && offsetof(Driver, home) == 8, "as in the real one");

/* Version 5 in form only: the real namespace is not public. */
static void guid_of(const char *name, uint8_t guid[16]) {
    uint64_t hash = 1469598103934665603ull;
    for (int at = 0; at < 16; at++) {
        for (const char *each = name; *each; each++) hash = (hash ^ (unsigned char)*each) * 1099511628211ull;
        hash = (hash ^ (unsigned)at) * 1099511628211ull;
        guid[at] = (uint8_t)(hash >> 32);
    }
    guid[7] = (uint8_t)((guid[7] & 0x0F) | 0x50);
    guid[8] = (uint8_t)((guid[8] & 0x3F) | 0x80);
}

API hresult NameToGuid(const wide *name, uint8_t *guid) {
    char *text = narrow(name);
    Call call = begin("NameToGuid", NULL, FREE_COTASK, text, NULL);
    guid_of(text, guid);
    free(text);
    return finish(&call, OK);
}

static Layer *layer_of(const char *path) {
    for (Layer *each = layers; each; each = each->next)
        if (!strcmp(each->path, path)) return each;
    Layer *made = calloc(1, sizeof *made);
    made->path = strdup(path);
    made->next = layers;
    return layers = made;
}

static void check_driver(const char *function, const Driver *driver) {
    if (!driver || driver->flavour != 1 || !driver->home) complain("%s: a wrong driver", function);
}

static void check_parents(const char *function, const Descriptor *parents, size_t count) {
    for (size_t at = 0; at < count; at++) {
        char *path = narrow(parents[at].path);
        const char *name = path + strlen(path);
        while (name > path && name[-1] != '/' && name[-1] != '\\') name--;
        uint8_t guid[16];
        guid_of(name, guid);
        if (memcmp(guid, parents[at].id, 16)) complain("%s: parent %s has another id than its name gives", function, path);
        if (parents[at].flags) complain("%s: flags of a parent", function);
        free(path);
    }
}

#define LAYER(name)                                             \
    char *path = narrow(id);                                    \
    Call call = begin(name, NULL, FREE_COTASK, path, NULL);     \
    locked();                                                   \
    check_driver(name, driver);                                 \
    Layer *layer = layer_of(path);                              \
    (void)layer;                                                \
    unlocked();                                                 \
    if (call.forced && !call.act) DONE(call.code)
#define DONE(code)                         \
    do {                                   \
        uint32_t code_ = (code);           \
        free(path);                        \
        return finish(&call, code_);       \
    } while (0)

API hresult LayerExists(const Driver *driver, const wide *id, uint32_t *exists) {
    LAYER("LayerExists");
    struct stat about;
    *exists = !stat(path, &about);
    DONE(OK);
}

API hresult CreateSandboxLayer(const Driver *driver, const wide *id, const wide *parent, const Descriptor *parents, size_t count) {
    (void)parent;
    LAYER("CreateSandboxLayer");
    locked();
    check_parents("CreateSandboxLayer", parents, count);
    unlocked();
    if (!count || make_directory(path)) DONE(WIN32_ERROR(count ? 183 : 87));
    char *disk = formatted("%s/sandbox.vhdx", path);
    FILE *file = fopen(disk, "wb");
    if (file) fclose(file);
    free(disk);
    DONE(OK);
}

API hresult ExpandSandboxSize(const Driver *driver, const wide *id, uint64_t bytes) {
    LAYER("ExpandSandboxSize");
    DONE(bytes ? OK : BAD_PARAMETER);
}

API hresult ActivateLayer(const Driver *driver, const wide *id) {
    LAYER("ActivateLayer");
    struct stat about;
    if (stat(path, &about)) DONE(WIN32_ERROR(3));
    if (layer->active) DONE(INVALID_STATE);
    layer->active = 1;
    DONE(OK);
}

API hresult PrepareLayer(const Driver *driver, const wide *id, const Descriptor *parents, size_t count) {
    LAYER("PrepareLayer");
    locked();
    check_parents("PrepareLayer", parents, count);
    if (preparing++) complain("two PrepareLayer at once");
    unlocked();
    sleep_ms(5);
    locked();
    preparing--;
    unlocked();
    if (!layer->active || layer->prepared || !count) DONE(INVALID_LAYER);
    layer->prepared = 1;
    DONE(OK);
}

API hresult GetLayerMountPath(const Driver *driver, const wide *id, size_t *length, wide *buffer) {
    LAYER("GetLayerMountPath");
    static const char VOLUME[] = "\\\\?\\Volume{8b1d9d0e-35d6-4a0c-9f7d-0a4a55c1e7aa}\\";
    if (!layer->prepared) DONE(INVALID_LAYER);
    if (buffer && *length >= sizeof VOLUME) {
        wide *text = widen(VOLUME);
        memcpy(buffer, text, sizeof VOLUME * sizeof(wide));
        free(text);
    }
    *length = sizeof VOLUME;
    DONE(OK);
}

API hresult UnprepareLayer(const Driver *driver, const wide *id) {
    LAYER("UnprepareLayer");
    if (!layer->prepared) DONE(INVALID_LAYER);
    layer->prepared = 0;
    DONE(OK);
}

API hresult DeactivateLayer(const Driver *driver, const wide *id) {
    LAYER("DeactivateLayer");
    if (!layer->active || layer->prepared) DONE(INVALID_LAYER);
    layer->active = 0;
    DONE(OK);
}

API hresult DestroyLayer(const Driver *driver, const wide *id) {
    LAYER("DestroyLayer");
    if (layer->active) DONE(WIN32_ERROR(32));
    DIR *directory = opendir(path);
    if (!directory) DONE(WIN32_ERROR(3));
    for (struct dirent *each = readdir(directory); each; each = readdir(directory)) {
        char *file = formatted("%s/%s", path, each->d_name);
        if (strcmp(each->d_name, ".") && strcmp(each->d_name, "..")) remove(file);
        free(file);
    }
    closedir(directory);
    DONE(rmdir(path) ? WIN32_ERROR(145) : OK);
}

/* Layers that are still attached. */
API int double_layers(char *buffer, int size) {
    int needed = 0;
    if (buffer && size > 0) *buffer = 0;
    locked();
    for (Layer *each = layers; each; each = each->next)
        if (each->active) {
            if (buffer && needed + (int)strlen(each->path) + 2 < size) sprintf(buffer + needed, "%s\n", each->path);
            needed += (int)strlen(each->path) + 1;
        }
    unlocked();
    return needed;
}

void layers_reset(void) {
    locked();
    while (layers) {
        Layer *next = layers->next;
        free(layers->path);
        free(layers);
        layers = next;
    }
    unlocked();
}
