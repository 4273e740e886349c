// libcuda.so.1 of a machine without a GPU. Programs find the GPUs of machine.h, their memory is the machine's own, copies work.
// It computes nothing: each launch fails.
#include "machine.h"
#include <pthread.h>

typedef int result;
typedef unsigned long long pointer;
enum {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
  NOT_FOUND = 500, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, UNKNOWN = 999
};
static const struct { result number; const char *name, *text; } ERRORS[] = {  // as in NVIDIA's driver
  {OK, "CUDA_SUCCESS", "no error"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
  {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}, {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
  {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
  {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
  {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}, {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
  {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
  {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}, {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
#define SUCCEEDS(name) result name() { return OK; }
#define FAILS(name) result name() { return LAUNCH_FAILED; }

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static result state = NOT_INITIALIZED;
static struct gpu gpus[MAX_GPUS];
static struct entry *entries[MAX_GPUS];
static int count;
static char contexts[MAX_GPUS];  // a context is the address of its GPU's element
static __thread void *current;
static uintptr_t next_handle = 0x2000;
static struct piece { pointer start; size_t size; int device; struct piece *next; } *pieces;

static int device_of(const void *context) {
  return (char *)context >= contexts && (char *)context < contexts + MAX_GPUS ? (char *)context - contexts : -1;
}

static void initialise(void) {
  struct gpu known[MAX_GPUS], usable[MAX_GPUS];
  int known_count = read_gpus(known), usable_count = 0;
  if (open_device("ctl")) {
    state = NO_DEVICE;
    return;
  }
  for (int i = 0; i < known_count; i++) {
    char name[16];
    snprintf(name, sizeof name, "%d", known[i].index);
    int error = open_device(name);
    if (error) new_entry(known[i].uuid, error);
    else usable[usable_count++] = known[i];
  }
  count = choose_visible(usable, usable_count, gpus);
  state = !count ? NO_DEVICE : open_device("-uvm") ? UNKNOWN : OK;
  if (state) count = 0;
  for (int i = 0; i < count; i++) entries[i] = new_entry(gpus[i].uuid, 0);
}

result cuInit(unsigned flags) {
  pthread_mutex_lock(&lock);
  if (state == NOT_INITIALIZED) initialise();
  pthread_mutex_unlock(&lock);
  return state;
}
#define NEEDS_DEVICE(device) do { if (state) return state; if ((device) < 0 || (device) >= count) return INVALID_DEVICE; } while (0)

result cuDriverGetVersion(int *version) { *version = 12090; return OK; }
result cuDeviceGetCount(int *found) { *found = count; return state; }
result cuDeviceGet(int *device, int index) { NEEDS_DEVICE(index); *device = index; return OK; }
result cuDeviceGetName(char *name, int size, int device) { NEEDS_DEVICE(device); snprintf(name, size, "%s", gpus[device].name); return OK; }
result cuDeviceTotalMem_v2(size_t *size, int device) { NEEDS_DEVICE(device); *size = gpus[device].memory; return OK; }
result cuDeviceGetUuid(unsigned char *uuid, int device) {
  NEEDS_DEVICE(device);
  const char *digit = gpus[device].uuid + 4;
  for (int i = 0; i < 16; i++, digit += 2) {
    digit += *digit == '-';
    unsigned value = 0;
    sscanf(digit, "%2x", &value);
    uuid[i] = value;
  }
  return OK;
}
result cuDeviceGetUuid_v2(unsigned char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
result cuDeviceGetPCIBusId(char *bus, int size, int device) {
  NEEDS_DEVICE(device);
  snprintf(bus, size, "%s", gpus[device].bus + (strlen(gpus[device].bus) > 12 ? 4 : 0));
  return OK;
}
result cuDeviceComputeCapability(int *major, int *minor, int device) {
  NEEDS_DEVICE(device);
  *major = gpus[device].major, *minor = gpus[device].minor;
  return OK;
}
result cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return state; }
result cuDeviceGetAttribute(int *value, int attribute, int device) {
  static const int known[][2] = {  // of an H100, by the numbers of cuda.h
    {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536}, {10, 32}, {12, 65536},
    {13, 1980000}, {16, 132}, {33, 0}, {36, 2619000}, {37, 5120}, {38, 52428800}, {39, 2048}, {50, 0}, {81, 233472}, {82, 65536},
    {97, 232448}, {102, 0}, {111, 1024}, {115, 0}, {116, 0}, {117, 0}};
  NEEDS_DEVICE(device);
  *value = attribute == 75 ? gpus[device].major : attribute == 76 ? gpus[device].minor : attribute == 34 ? device + 5 : 1;
  for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) *value = known[i][1];
  return OK;
}

result cuDevicePrimaryCtxRetain(void **context, int device) { NEEDS_DEVICE(device); *context = &contexts[device]; return OK; }
result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0, *active = 1; return state; }
SUCCEEDS(cuDevicePrimaryCtxRelease) SUCCEEDS(cuDevicePrimaryCtxRelease_v2) SUCCEEDS(cuDevicePrimaryCtxSetFlags)
SUCCEEDS(cuDevicePrimaryCtxSetFlags_v2) SUCCEEDS(cuCtxSynchronize) SUCCEEDS(cuCtxEnablePeerAccess) SUCCEEDS(cuCtxSetSharedMemConfig)
SUCCEEDS(cuCtxSetLimit)
result cuCtxSetCurrent(void *context) { current = context; return OK; }
result cuCtxGetCurrent(void **context) { *context = current; return OK; }
result cuCtxPushCurrent_v2(void *context) { current = context; return OK; }
result cuCtxPopCurrent_v2(void **context) { if (context) *context = current; return OK; }
result cuCtxGetDevice(int *device) { *device = device_of(current); return *device < 0 ? INVALID_CONTEXT : OK; }
result cuCtxGetApiVersion(void *context, unsigned *version) { *version = 3020; return OK; }
result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return OK; }

result cuMemGetInfo_v2(size_t *available, size_t *total) {
  int device = device_of(current);
  if (device < 0 || device >= count) return INVALID_CONTEXT;
  uint64_t used = used_memory(&gpus[device]);
  *total = gpus[device].memory;
  *available = used < *total ? *total - used : 0;
  return OK;
}
static result take(void **start, size_t size, int device) {
  void *memory = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  struct piece *piece = malloc(sizeof *piece);
  pthread_mutex_lock(&lock);
  *piece = (struct piece){(pointer)memory, size, device, pieces};
  pieces = piece;
  if (device >= 0) {
    struct entry *entry = entries[device];
    if (!entry->count++) entry->first = size;
    entry->bytes += size;
    if (entry->bytes > entry->peak) entry->peak = entry->bytes;
  }
  pthread_mutex_unlock(&lock);
  *start = memory;
  return OK;
}
static result give_back(pointer start) {
  pthread_mutex_lock(&lock);
  struct piece **at = &pieces, *piece;
  while (*at && (*at)->start != start) at = &(*at)->next;
  if ((piece = *at)) {
    *at = piece->next;
    if (piece->device >= 0) entries[piece->device]->bytes -= piece->size;
  }
  pthread_mutex_unlock(&lock);
  if (!piece) return INVALID_VALUE;
  munmap((void *)piece->start, piece->size + 4096);
  free(piece);
  return OK;
}
result cuMemAlloc_v2(pointer *start, size_t size) {
  size_t available, total;
  result error = cuMemGetInfo_v2(&available, &total);
  return error ? error : size > available ? OUT_OF_MEMORY : take((void **)start, size, device_of(current));
}
result cuMemAllocManaged(pointer *start, size_t size, unsigned flags) { return cuMemAlloc_v2(start, size); }
result cuMemHostAlloc(void **start, size_t size, unsigned flags) { return take(start, size, -1); }
result cuMemAllocHost_v2(void **start, size_t size) { return take(start, size, -1); }
result cuMemFree_v2(pointer start) { return give_back(start); }
result cuMemFreeHost(void *start) { return give_back((pointer)start); }
SUCCEEDS(cuMemHostRegister_v2) SUCCEEDS(cuMemHostUnregister)
result cuMemHostGetDevicePointer_v2(pointer *device, void *start, unsigned flags) { *device = (pointer)start; return OK; }
result cuPointerGetAttribute(void *data, int attribute, pointer address) {
  int device = -1;
  pthread_mutex_lock(&lock);
  for (struct piece *piece = pieces; piece && device < 0; piece = piece->next)
    if (address >= piece->start && address < piece->start + piece->size) device = piece->device;
  pthread_mutex_unlock(&lock);
  if (device < 0) return INVALID_VALUE;
  if (attribute == 2) *(int *)data = 2;  // memory of a GPU
  else if (attribute == 9) *(int *)data = device;
  else *(void **)data = &contexts[device];
  return OK;
}

#define COPIES(name, to, from) \
  result name##_v2(to target, from source, size_t size) { memcpy((void *)target, (void *)source, size); return OK; } \
  result name##Async_v2(to target, from source, size_t size, void *stream) { return name##_v2(target, source, size); }
COPIES(cuMemcpyHtoD, pointer, const void *)
COPIES(cuMemcpyDtoH, void *, pointer)
COPIES(cuMemcpyDtoD, pointer, pointer)
result cuMemsetD8_v2(pointer start, unsigned char value, size_t size) { memset((void *)start, value, size); return OK; }
result cuMemsetD8Async(pointer start, unsigned char value, size_t size, void *stream) { return cuMemsetD8_v2(start, value, size); }
result cuMemsetD32_v2(pointer start, unsigned value, size_t size) {
  for (size_t i = 0; i < size; i++) ((unsigned *)start)[i] = value;
  return OK;
}
result cuMemsetD32Async(pointer start, unsigned value, size_t size, void *stream) { return cuMemsetD32_v2(start, value, size); }

static result handle(void **made) { *made = (void *)__atomic_add_fetch(&next_handle, 16, __ATOMIC_RELAXED); return OK; }
result cuStreamCreate(void **stream, unsigned flags) { return handle(stream); }
result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return handle(stream); }
result cuStreamIsCapturing(void *stream, int *captures) { *captures = 0; return OK; }
result cuEventCreate(void **event, unsigned flags) { return handle(event); }
result cuEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 1; return OK; }
result cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { *milliseconds = 1; return OK; }
result cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) { function(data); return OK; }
result cuStreamAddCallback(void *stream, void (*function)(void *, result, void *), void *data, unsigned flags) {
  function(stream, OK, data);
  return OK;
}
SUCCEEDS(cuStreamDestroy_v2) SUCCEEDS(cuStreamSynchronize) SUCCEEDS(cuStreamQuery) SUCCEEDS(cuStreamWaitEvent) SUCCEEDS(cuEventRecord)
SUCCEEDS(cuEventQuery) SUCCEEDS(cuEventDestroy_v2) SUCCEEDS(cuEventSynchronize)
result cuDeviceGetMemPool(void **pool, int device) { NEEDS_DEVICE(device); *pool = &contexts[device]; return OK; }
result cuDeviceGetDefaultMemPool(void **pool, int device) { return cuDeviceGetMemPool(pool, device); }

result cuModuleLoadData(void **module, const void *code) { return handle(module); }
result cuModuleLoadDataEx(void **module, const void *code, unsigned count, int *options, void **values) { return handle(module); }
result cuModuleLoadFatBinary(void **module, const void *code) { return handle(module); }
result cuModuleGetFunction(void **function, void *module, const char *name) { return handle(function); }
SUCCEEDS(cuModuleUnload) FAILS(cuModuleGetGlobal_v2) FAILS(cuLaunchKernel) FAILS(cuLaunchKernelEx)
FAILS(cuGraphLaunch)
result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) { *function = NULL; return NOT_FOUND; }
result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
  *function = NULL;
  if (status) *status = 1;  // not found
  return NOT_FOUND;
}
result cuGetExportTable(const void **table, const void *id) { *table = NULL; return NOT_FOUND; }

static result describe(result error, const char **text, int as_name) {
  for (unsigned i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++) {
    if (ERRORS[i].number == error) {
      *text = as_name ? ERRORS[i].name : ERRORS[i].text;
      return OK;
    }
  }
  *text = NULL;
  return INVALID_VALUE;
}
result cuGetErrorName(result error, const char **text) { return describe(error, text, 1); }
result cuGetErrorString(result error, const char **text) { return describe(error, text, 0); }
