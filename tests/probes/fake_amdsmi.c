/* A libamd_smi.so that replays recorded answers.
 *
 * FAKE_AMDSMI names a text file of "key=value" lines, read anew at every question. Keys: init, version, sockets, and per GPU
 * "0.total"; a key that ends in ".code" is the status of that call, "0.gone" that of every call. GPUs are spread over the
 * sockets. Prototypes, structures and numbers follow amdsmi.h; with SHORT_STRINGS those of versions up to 24.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef SHORT_STRINGS
#define NAME 32
#define REST 4
typedef struct { uint32_t current, average; } power_info;
#else
#define NAME 256
#define REST 12
typedef struct { uint64_t socket; uint32_t current, average; } power_info;
#endif

typedef struct {
    char name[NAME];
    uint32_t pid;
    uint64_t mem;
    struct { uint64_t gfx, enc; uint32_t reserved[12]; } engine_usage;
    struct { uint64_t gtt_mem, cpu_mem, vram_mem; uint32_t reserved[10]; } memory_usage;
    char container_name[NAME];
    uint32_t rest[REST];
} process;

typedef struct { char key[16]; } device;
static device devices[8], sockets[8];

static int find(const char *owner, const char *name, char *value, size_t size) {
    char line[512], key[128];
    const char *path = getenv("FAKE_AMDSMI");
    FILE *file = path ? fopen(path, "r") : NULL;
    int found = 0;
    snprintf(key, sizeof key, "%s%s%s=", owner, *owner ? "." : "", name);
    while (file && !found && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key))) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(value, size, "%s", line + strlen(key));
        found = 1;
    }
    if (file) fclose(file);
    return found;
}

static uint64_t number(const char *owner, const char *name, uint64_t otherwise) {
    char value[64];
    return find(owner, name, value, sizeof value) ? strtoull(value, NULL, 0) : otherwise;
}

/* The status of a call: "gone", "NAME.code", else not supported (2) unless the answer is there. */
static int code(const device *gpu, const char *name) {
    char key[64], value[512];
    int status = (int)number(gpu->key, "gone", 0);
    snprintf(key, sizeof key, "%s.code", name);
    if (!status) status = (int)number(gpu->key, key, 0);
    if (!status && !find(gpu->key, name, value, sizeof value)) status = 2;
    return status;
}

int amdsmi_init(uint64_t flags) { return flags == 2 ? (int)number("", "init", 0) : 1; }
int amdsmi_shut_down(void) { return 0; }
int amdsmi_get_lib_version(uint32_t *out) { out[0] = (uint32_t)number("", "version", 26); return 0; }

int amdsmi_get_socket_handles(uint32_t *count, void **out) {
    uint32_t there = (uint32_t)number("", "sockets", 0);
    for (uint32_t n = 0; out && n < there && n < *count; n++) out[n] = &sockets[n];
    *count = there;
    return 0;
}

int amdsmi_get_processor_handles(void *socket, uint32_t *count, void **out) {
    long n = (device *)socket - sockets;
    snprintf(devices[n].key, sizeof devices[n].key, "%ld", n);
    if (out) out[0] = &devices[n];
    *count = 1;
    return 0;
}

int amdsmi_get_processor_type(device *gpu, int *out) { *out = (int)number(gpu->key, "type", 1); return 0; }

int amdsmi_get_gpu_asic_info(device *gpu, char *out) { find(gpu->key, "name", out, 32); return code(gpu, "name"); }
int amdsmi_get_gpu_driver_info(device *gpu, char *out) { find(gpu->key, "driver", out, 32); return code(gpu, "driver"); }

int amdsmi_get_gpu_device_uuid(device *gpu, unsigned *length, char *out) {
    if (*length < 38) return 1;
    find(gpu->key, "uuid", out, *length);
    return code(gpu, "uuid");
}

int amdsmi_get_gpu_bdf_id(device *gpu, uint64_t *out) { *out = number(gpu->key, "bdf", 0); return code(gpu, "bdf"); }

int amdsmi_get_gpu_memory_total(device *gpu, int kind, uint64_t *out) {
    *out = number(gpu->key, "total", 0);
    return kind ? 1 : code(gpu, "total");
}

int amdsmi_get_gpu_memory_usage(device *gpu, int kind, uint64_t *out) {
    *out = number(gpu->key, "used", 0);
    return kind ? 1 : code(gpu, "used");
}

int amdsmi_get_gpu_activity(device *gpu, uint32_t *out) { out[0] = (uint32_t)number(gpu->key, "busy", 0); return code(gpu, "busy"); }

int amdsmi_get_power_info(device *gpu, power_info *out) {
    out->current = (uint32_t)number(gpu->key, "current", 0xFFFFFFFF);
    out->average = (uint32_t)number(gpu->key, "average", 0xFFFFFFFF);
    return (int)number(gpu->key, "power.code", 0);
}

int amdsmi_get_temp_metric(device *gpu, int sensor, int metric, int64_t *out) {
    const char *name = sensor ? "hotspot" : "edge";
    *out = (int64_t)number(gpu->key, name, 0);
    return metric ? 1 : code(gpu, name);
}

/* "0.processes=PID:MEM:VRAM PID:MEM:VRAM" */
int amdsmi_get_gpu_process_list(device *gpu, uint32_t *count, process *out) {
    char line[512] = "", *item = line, *next;
    uint32_t found = 0;
    int status = code(gpu, "processes");
    if (status) return status;
    find(gpu->key, "processes", line, sizeof line);
    for (; *item; item = next) {
        next = item + strcspn(item, " ");
        while (*next == ' ') *next++ = 0;
        if (found < *count) {
            memset(&out[found], 0, sizeof *out);
            snprintf(out[found].name, NAME, "python3");
            snprintf(out[found].container_name, NAME, "box");
            out[found].pid = (uint32_t)strtoul(item, NULL, 10);
            out[found].mem = strtoull(strchr(item, ':') + 1, NULL, 10);
            out[found].memory_usage.vram_mem = strtoull(strrchr(item, ':') + 1, NULL, 10);
        }
        found++;
    }
    status = found > *count ? 15 : 0;
    *count = found;
    return status;
}
