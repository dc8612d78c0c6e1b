// A CUDA driver without a card: device memory is host memory, launches do nothing, and every module
// that is loaded is kept as a file. With it, programs made for CUDA compile their kernels with the real
// NVRTC, for whatever card is asked for, on a machine that has none.
//
//   CUDA_DRIVER_ARCH   compute capability, as in sm_90 [default: 80]
//   CUDA_DRIVER_PTX    folder that modules are written to
//
// Handles are numbers that nobody looks behind. Only what CubeCL's runtime calls is here.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int result;
typedef void *handle;
typedef unsigned long long pointer;

static int arch(void) {
    const char *text = getenv("CUDA_DRIVER_ARCH");
    return text ? atoi(text) : 80;
}

static result give(handle *to) {
    static char next;
    return *to = (handle)(&next + 1), 0;
}

result cuInit(unsigned flags) { return 0; }
// NVRTC asks for it and goes on without.
result cuGetExportTable(const void **table, const void *id) { return 500; }
result cuDriverGetVersion(int *version) { return *version = 13000, 0; }
result cuGetErrorName(int error, const char **name) { return *name = "error", 0; }
result cuGetErrorString(int error, const char **text) { return *text = "no such thing", 0; }
result cuDeviceGet(int *device, int index) { return *device = index, index != 0 ? 101 : 0; }
result cuDeviceGetCount(int *count) { return *count = 1, 0; }
result cuDeviceGetName(char *name, int size, int device) {
    return snprintf(name, size, "NVIDIA sm_%d, not there", arch()), 0;
}
result cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, 1, 16), 0; }
result cuDeviceGetPCIBusId(char *id, int size, int device) {
    return snprintf(id, size, "0000:01:00.0"), 0;
}
result cuDeviceGetLuid(char *luid, unsigned *mask, int device) { return 801; }
result cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)80 << 30, 0; }
result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: return *value = 1024, 0;                 // threads a block
    case 2: case 3: return *value = 1024, 0;         // block, x and y
    case 4: return *value = 64, 0;                   // block, z
    case 5: return *value = 2147483647, 0;           // grid, x
    case 6: case 7: return *value = 65535, 0;        // grid, y and z
    case 8: return *value = 48 << 10, 0;             // shared memory a block
    case 10: return *value = 32, 0;                  // threads a warp
    case 16: return *value = arch() < 90 ? 108 : 132, 0;             // multiprocessors
    case 75: return *value = arch() / 10, 0;         // compute capability
    case 76: return *value = arch() % 10, 0;
    case 97: return *value = (arch() < 90 ? 163 : 227) << 10, 0;     // shared memory, on request
    default: return *value = 0, 0;
    }
}
result cuDevicePrimaryCtxRetain(handle *context, int device) { return give(context); }
result cuCtxSetCurrent(handle context) { return 0; }
result cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, 0;
}
result cuStreamCreate(handle *stream, unsigned flags) { return give(stream); }
result cuStreamCreateWithPriority(handle *stream, unsigned f, int p) { return give(stream); }
result cuStreamSynchronize(handle stream) { return 0; }
result cuStreamQuery(handle stream) { return 0; }
result cuStreamWaitEvent(handle stream, handle event, unsigned flags) { return 0; }
result cuEventCreate(handle *event, unsigned flags) { return give(event); }
result cuEventRecord(handle event, handle stream) { return 0; }
result cuEventQuery(handle event) { return 0; }
result cuEventSynchronize(handle event) { return 0; }
result cuEventElapsedTime_v2(float *ms, handle start, handle end) { return *ms = 1, 0; }
result cuEventDestroy_v2(handle event) { return 0; }
result cuLaunchHostFunc(handle stream, void (*run)(void *), void *data) { return run(data), 0; }

static result host(pointer *to, size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 512, bytes ? bytes : 1) != 0) return 2;
    memset(memory, 0, bytes);
    return *to = (pointer)memory, 0;
}
result cuMemAlloc_v2(pointer *to, size_t bytes) { return host(to, bytes); }
result cuMemAllocAsync(pointer *to, size_t bytes, handle stream) { return host(to, bytes); }
result cuMemAllocHost_v2(void **to, size_t bytes) { return host((pointer *)to, bytes); }
result cuMemFree_v2(pointer at) { return free((void *)at), 0; }
result cuMemFreeAsync(pointer at, handle stream) { return free((void *)at), 0; }
result cuMemFreeHost(void *at) { return free(at), 0; }
result cuMemGetInfo_v2(size_t *left, size_t *all) {
    return *left = (size_t)79 << 30, *all = (size_t)80 << 30, 0;
}
result cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, handle stream) {
    return memcpy((void *)to, from, bytes), 0;
}
result cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, handle stream) {
    return memcpy(to, (void *)from, bytes), 0;
}
result cuMemcpyDtoDAsync_v2(pointer to, pointer from, size_t bytes, handle stream) {
    return memmove((void *)to, (void *)from, bytes), 0;
}
result cuMemsetD8Async(pointer to, unsigned char value, size_t bytes, handle stream) {
    return memset((void *)to, value, bytes), 0;
}
struct plane { size_t x, y; int type; const void *host; pointer device; handle array; size_t pitch; };
struct copy { struct plane from, to; size_t width, height; };
static char *start(const struct plane *p) {
    return (p->type == 1 ? (char *)p->host : (char *)p->device) + p->y * p->pitch + p->x;
}
result cuMemcpy2DAsync_v2(const struct copy *copy, handle stream) {
    for (size_t row = 0; row < copy->height; row++)
        memcpy(start(&copy->to) + row * copy->to.pitch, start(&copy->from) + row * copy->from.pitch,
               copy->width);
    return 0;
}

result cuModuleLoadData(handle *module, const void *image) {
    static int count;
    const char *folder = getenv("CUDA_DRIVER_PTX");
    if (folder) {
        char name[4096];
        int number = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
        snprintf(name, sizeof name, "%s/%05d.ptx", folder, number);
        FILE *file = fopen(name, "w");
        if (!file || fputs(image, file) < 0 || fclose(file)) return 304;
    }
    return give(module);
}
result cuModuleGetFunction(handle *function, handle module, const char *name) {
    return give(function);
}
result cuModuleUnload(handle module) { return 0; }
result cuFuncSetAttribute(handle function, int attribute, int value) { return 0; }
result cuLaunchKernel(handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared, handle stream, void **params, void **extra) {
    return 0;
}
result cuLaunchKernelEx(const void *config, handle f, void **params, void **extra) { return 0; }
