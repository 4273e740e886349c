// libnvidia-ml.so.1 for use with driver.c: TensorFlow counts no GPU where it is missing.
#include "machine.h"

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9 };
static struct gpu gpus[MAX_GPUS];
static int count;

int nvmlInit_v2(void) {
  count = read_gpus(gpus);
  return open_device("ctl") ? DRIVER_NOT_LOADED : OK;
}
int nvmlInit(void) { return nvmlInit_v2(); }
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *found) { *found = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = &gpus[index];
  return index < (unsigned)count ? OK : INVALID_ARGUMENT;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
  for (int i = 0; i < count; i++) {
    if (strcasestr(gpus[i].bus, bus) || strcasestr(bus, gpus[i].bus)) {
      *device = &gpus[i];
      return OK;
    }
  }
  return NOT_FOUND;
}
int nvmlDeviceGetName(struct gpu *device, char *name, unsigned size) { snprintf(name, size, "%s", device->name); return OK; }
int nvmlDeviceGetUUID(struct gpu *device, char *uuid, unsigned size) { snprintf(uuid, size, "%s", device->uuid); return OK; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { snprintf(version, size, "580.159.04"); return OK; }
const char *nvmlErrorString(int error) { return error == OK ? "Success" : error == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Unknown Error"; }
