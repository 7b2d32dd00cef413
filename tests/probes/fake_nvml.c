/* A libnvidia-ml.so.1 that replays recorded answers.
 *
 * FAKE_NVML names a text file of "key=value" lines, read anew at every question so that a test can change the answers
 * while a program runs. Keys: init, count, driver, cuda, and per GPU "0.memory_v2.total"; a key that ends in ".code"
 * is the NVML error number of that call. A MIG instance of GPU 0 in slot 1 is "0m1".
 * Prototypes and structures follow nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char key[16]; } device;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;

static device devices[64];

static int find(const char *owner, const char *name, char *value, size_t size) {
    char line[512], key[128];
    const char *path = getenv("FAKE_NVML");
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

static unsigned long long number(const char *owner, const char *name, unsigned long long otherwise) {
    char value[64];
    return find(owner, name, value, sizeof value) ? strtoull(value, NULL, 10) : otherwise;
}

/* The error number of a call: "NAME.code", else not supported unless the answer is there. */
static int code(const device *gpu, const char *name, const char *answer) {
    char key[64], value[512];
    snprintf(key, sizeof key, "%s.code", name);
    int error = (int)number(gpu->key, key, 0);
    if (!error) error = (int)number(gpu->key, "lost", 0);
    if (!error && !find(gpu->key, answer, value, sizeof value)) error = 3;
    return error;
}

static int text(const device *gpu, const char *name, char *out, unsigned size) {
    int error = code(gpu, name, name);
    if (!error) find(gpu->key, name, out, size);
    return error;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return (int)number("", "init", 0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { return error == 77 ? "a brand new error" : "an error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return find("", "driver", out, size) ? 0 : 3; }
int nvmlSystemGetCudaDriverVersion(int *out) { *out = (int)number("", "cuda", 0); return *out ? 0 : 3; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)number("", "count", 0); return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
    snprintf(devices[index].key, sizeof devices[index].key, "%u", index);
    *out = &devices[index];
    return (int)number(devices[index].key, "handle.code", 0);
}

int nvmlDeviceGetMigMode(device *gpu, unsigned *current, unsigned *pending) {
    *current = *pending = (unsigned)number(gpu->key, "mig", 0);
    return code(gpu, "mig", "mig");
}

int nvmlDeviceGetMaxMigDeviceCount(device *gpu, unsigned *count) {
    *count = (unsigned)number(gpu->key, "mig_slots", 0);
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *gpu, unsigned slot, device **out) {
    char value[8];
    device *instance = &devices[32 + slot];
    snprintf(instance->key, sizeof instance->key, "%.8sm%u", gpu->key, slot);
    *out = instance;
    return find(instance->key, "name", value, sizeof value) ? 0 : 6;
}

int nvmlDeviceGetName(device *gpu, char *out, unsigned size) { return text(gpu, "name", out, size); }
int nvmlDeviceGetUUID(device *gpu, char *out, unsigned size) { return text(gpu, "uuid", out, size); }

int nvmlDeviceGetPciInfo_v3(device *gpu, pci *out) {
    memset(out, 0, sizeof *out);
    return text(gpu, "pci", out->bus_id, sizeof out->bus_id);
}

int nvmlDeviceGetMemoryInfo(device *gpu, memory_v1 *out) {
    out->total = number(gpu->key, "memory_v1.total", 0);
    out->free = number(gpu->key, "memory_v1.free", 0);
    out->used = number(gpu->key, "memory_v1.used", 0);
    return code(gpu, "memory_v1", "memory_v1.total");
}

#ifndef WITHOUT_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(device *gpu, memory_v2 *out) {
    if (out->version != (sizeof *out | 2u << 24)) return 25;
    out->total = number(gpu->key, "memory_v2.total", 0);
    out->free = number(gpu->key, "memory_v2.free", 0);
    out->used = number(gpu->key, "memory_v2.used", 0);
    out->reserved = number(gpu->key, "memory_v2.reserved", 0);
    return code(gpu, "memory_v2", "memory_v2.total");
}
#endif

int nvmlDeviceGetUtilizationRates(device *gpu, utilization *out) {
    out->gpu = (unsigned)number(gpu->key, "utilization", 0);
    out->memory = 0;
    return code(gpu, "utilization", "utilization");
}

int nvmlDeviceGetPowerUsage(device *gpu, unsigned *milliwatts) {
    *milliwatts = (unsigned)number(gpu->key, "power", 0);
    return code(gpu, "power", "power");
}

int nvmlDeviceGetTemperature(device *gpu, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    *celsius = (unsigned)number(gpu->key, "temperature", 0);
    return code(gpu, "temperature", "temperature");
}

/* "0.processes=PID:BYTES PID:BYTES"; bytes "na" is what Windows' WDDM answers. */
static int processes(device *gpu, unsigned *count, process *out) {
    char line[512] = "", *item = line, *next;
    unsigned found = 0;
    int error = code(gpu, "processes", "processes");
    if (error) return error;
    find(gpu->key, "processes", line, sizeof line);
    for (; *item; item = next) {
        next = item + strcspn(item, " ");
        while (*next == ' ') *next++ = 0;
        if (out && found < *count) {
            char *bytes = strchr(item, ':') + 1;
            out[found].pid = (unsigned)strtoul(item, NULL, 10);
            out[found].used = strcmp(bytes, "na") ? strtoull(bytes, NULL, 10) : ~0ULL;
        }
        found++;
    }
    error = found > (out ? *count : 0) ? 7 : 0;
    *count = found;
    return error;
}

#ifndef WITHOUT_PROCESSES_V3
int nvmlDeviceGetComputeRunningProcesses_v3(device *gpu, unsigned *count, process *out) { return processes(gpu, count, out); }
#endif
int nvmlDeviceGetComputeRunningProcesses_v2(device *gpu, unsigned *count, process *out) { return processes(gpu, count, out); }
