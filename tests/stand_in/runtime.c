// libcudart.so.12 for use with driver.c: NVIDIA's own asks the driver for tables that have no public description.
#include "machine.h"
#include <dlfcn.h>

typedef int result;
enum { OK = 0, INVALID_VALUE = 1, NO_DEVICE = 100, LAUNCH_FAILED = 719 };
#define SUCCEEDS(name) result name() { return OK; }
#define FAILS(name) result name() { return LAUNCH_FAILED; }
static __thread int current;

// A function of the driver, which is loaded only where it is called: each process of the machine loads this library.
static void *driver(const char *name) {
  static void *library;
  if (!library) library = dlopen("libcuda.so.1", RTLD_NOW);
  return library ? dlsym(library, name) : NULL;
}
#define CALL(name, ...) ({ result (*function)() = driver(name); function ? function(__VA_ARGS__) : NO_DEVICE; })
#define START() do { result error = CALL("cuInit", 0); if (error) return error; } while (0)

static result use(int device) {
  void *context;
  START();
  result error = CALL("cuDevicePrimaryCtxRetain", &context, device);
  return error ? error : CALL("cuCtxSetCurrent", context);
}
result cudaSetDevice(int device) { current = device; return use(device); }
result cudaGetDevice(int *device) { *device = current; return OK; }
result cudaGetDeviceCount(int *count) { *count = 0; START(); return CALL("cuDeviceGetCount", count); }
result cudaRuntimeGetVersion(int *version) { *version = 12090; return OK; }
result cudaDriverGetVersion(int *version) { *version = 12090; return OK; }
result cudaDeviceGetPCIBusId(char *bus, int size, int device) { START(); return CALL("cuDeviceGetPCIBusId", bus, size, device); }
result cudaDeviceGetAttribute(int *value, int attribute, int device) { START(); return CALL("cuDeviceGetAttribute", value, attribute, device); }
result cudaMemGetInfo(size_t *available, size_t *total) {
  result error = use(current);
  return error ? error : CALL("cuMemGetInfo_v2", available, total);
}
result cudaMalloc(void **start, size_t size) {
  result error = use(current);
  return error ? error : CALL("cuMemAlloc_v2", start, size);
}
result cudaFree(void *start) { return start ? CALL("cuMemFree_v2", start) : OK; }
result cudaMallocHost(void **start, size_t size) { return CALL("cuMemAllocHost_v2", start, size); }
result cudaHostAlloc(void **start, size_t size, unsigned flags) { return CALL("cuMemAllocHost_v2", start, size); }
result cudaFreeHost(void *start) { return CALL("cuMemFreeHost", start); }
result cudaMemcpy(void *target, const void *source, size_t size, int kind) { memcpy(target, source, size); return OK; }
result cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) { memcpy(target, source, size); return OK; }
result cudaMemsetAsync(void *start, int value, size_t size, void *stream) { memset(start, value, size); return OK; }
result cudaGetDeviceProperties_v2(char *properties, int device) {  // cudaDeviceProp of CUDA 12, by its offsets
  const int limits[7] = {1024, 1024, 64, 2147483647, 65535, 65535, 1980000};
  size_t memory = 0;
  int major = 0, minor = 0;
  memset(properties, 0, 1032);
  START();
  result error = CALL("cuDeviceGetName", properties, 256, device);
  if (error) return error;
  CALL("cuDeviceTotalMem_v2", &memory, device);
  CALL("cuDeviceComputeCapability", &major, &minor, device);
  *(size_t *)(properties + 288) = memory, *(size_t *)(properties + 296) = 49152, *(size_t *)(properties + 352) = 65536;
  *(int *)(properties + 304) = 65536, *(int *)(properties + 308) = 32, *(int *)(properties + 320) = 1024;
  memcpy(properties + 324, limits, sizeof limits);
  *(int *)(properties + 360) = major, *(int *)(properties + 364) = minor, *(int *)(properties + 388) = 132;
  return OK;
}
result cudaGetDeviceProperties(char *properties, int device) { return cudaGetDeviceProperties_v2(properties, device); }
result cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = (void *)0x99; return OK; }
result cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)0x98; return OK; }
result cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return OK; }
result cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *function, int block, size_t size) { *count = 8; return OK; }
result cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *function, int block, size_t size, unsigned flags) {
  *count = 8;
  return OK;
}
result cudaFuncGetAttributes(void *attributes, const void *function) { memset(attributes, 0, 64); return OK; }
const char *cudaGetErrorString(result error) {
  const char *text = NULL;
  CALL("cuGetErrorString", error, &text);
  return text ? text : "unrecognized error code";
}
const char *cudaGetErrorName(result error) {
  return error == OK ? "cudaSuccess" : error == LAUNCH_FAILED ? "cudaErrorLaunchFailure" : "cudaErrorUnknown";
}
SUCCEEDS(cudaDeviceSynchronize) SUCCEEDS(cudaStreamSynchronize) SUCCEEDS(cudaGetLastError) SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaSetDeviceFlags) SUCCEEDS(cudaStreamDestroy) SUCCEEDS(cudaEventDestroy) SUCCEEDS(cudaDeviceSetLimit)
SUCCEEDS(cudaFuncSetAttribute) SUCCEEDS(cudaProfilerStart) SUCCEEDS(cudaProfilerStop) SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaEventQuery) SUCCEEDS(cudaEventRecord)
FAILS(cudaLaunchKernel) FAILS(cudaLaunchKernelExC) FAILS(cudaGraphLaunch)
SUCCEEDS(__cudaPushCallConfiguration) SUCCEEDS(__cudaPopCallConfiguration)
void **__cudaRegisterFatBinary(void *code) { static void *handle[8]; return handle; }
void __cudaRegisterFatBinaryEnd() {}
void __cudaUnregisterFatBinary() {}
void __cudaRegisterFunction() {}
void __cudaRegisterVar() {}
