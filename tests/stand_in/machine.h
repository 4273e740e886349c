// What the parts of the stand-in for the NVIDIA driver have in common: the machine's GPUs, and the record of who uses them.
//
// GPUs are the lines of a file as nvidia-smi prints them (index, name, UUID, bus, MiB, MiB in use, temperature, compute capability,
// driver, MIG). Other lines are ignored here; nvidia-smi prints them. The record is a file in memory with an entry for each GPU that
// a process tried to open. nvidia-smi reads it. An entry is locked while its process lives: the kernel releases the lock.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_GPUS = 32, ENTRIES = 1024 };

struct gpu {
  int index;
  char name[64], uuid[48], bus[32];
  uint64_t memory, used_before;  // bytes
  int major, minor;              // compute capability
};

struct entry {  // nvidia-smi (Python) has the same layout
  int32_t pid, error;                     // of the process; errno of opening the GPU's device file, 0 if it is usable
  uint64_t bytes, peak, first, count;     // memory now, at most, in the first allocation; number of allocations
  char uuid[48], process[48];
};

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

static int read_gpus(struct gpu *gpus) {
  FILE *file = fopen(setting("STAND_IN_GPUS", "/etc/nvidia-stand-in.csv"), "re");
  char line[512];
  int count = 0;
  while (file && count < MAX_GPUS && fgets(line, sizeof line, file)) {
    struct gpu *gpu = &gpus[count];
    unsigned long total, used;
    memset(gpu, 0, sizeof *gpu);
    int found = sscanf(line, "%d, %63[^,], %47[^,], %31[^,], %lu, %lu, %*[^,], %d.%d", &gpu->index, gpu->name, gpu->uuid, gpu->bus,
                       &total, &used, &gpu->major, &gpu->minor);
    if (found < 8) continue;
    gpu->memory = (uint64_t)total << 20;
    gpu->used_before = (uint64_t)used << 20;
    count++;
  }
  if (file) fclose(file);
  return count;
}

// Open a device file as a program does; return its errno, 0 if the file may be opened. Without the kernel's module there is no
// device behind the file: the kernel says so (ENXIO) only after it has checked permissions and the device list of the control group.
static int open_device(const char *name) {
  char path[256];
  snprintf(path, sizeof path, "%s/nvidia%s", setting("STAND_IN_DEVICES", "/dev"), name);
  int file = open(path, O_RDWR | O_CLOEXEC);
  return file >= 0 || errno == ENXIO ? 0 : errno;
}

static struct entry *record(void) {
  static struct entry *entries;
  static int file = -1;
  if (entries) return entries;
  const char *path = setting("STAND_IN_RECORD", "/dev/shm/nvidia-stand-in");
  file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) {
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) return NULL;
    fchmod(file, 0666);
  }
  struct stat found;
  size_t size = ENTRIES * sizeof(struct entry);
  if (fstat(file, &found) || ((size_t)found.st_size < size && ftruncate(file, size))) return NULL;
  void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return mapped == MAP_FAILED ? NULL : (entries = mapped);
}

static int lock_entry(int file, int index, int kind) {
  struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = index * sizeof(struct entry), .l_len = 1};
  return fcntl(file, F_OFD_SETLK, &lock);
}

// Return a new entry of this process. Entries of processes that ended are kept until there is no other room.
static struct entry *new_entry(const char *uuid, int error) {
  static struct entry nowhere;
  struct entry *entries = record();
  int file = open(setting("STAND_IN_RECORD", "/dev/shm/nvidia-stand-in"), O_RDWR | O_CLOEXEC);
  for (int again = 0; entries && file >= 0 && again < 2; again++) {
    for (int i = 0; i < ENTRIES; i++) {
      if ((entries[i].pid && !again) || lock_entry(file, i, F_WRLCK)) continue;
      if (entries[i].pid && !again) {
        lock_entry(file, i, F_UNLCK);
        continue;
      }
      memset(&entries[i], 0, sizeof entries[i]);
      snprintf(entries[i].uuid, sizeof entries[i].uuid, "%s", uuid);
      FILE *name = fopen("/proc/self/comm", "re");
      if (name) {
        if (!fgets(entries[i].process, sizeof entries[i].process, name)) entries[i].process[0] = 0;
        entries[i].process[strcspn(entries[i].process, "\n")] = 0;
        fclose(name);
      }
      entries[i].error = error;
      entries[i].pid = getpid();
      return &entries[i];
    }
  }
  return &nowhere;
}

// Return the memory that living processes have of a GPU.
static uint64_t used_memory(const struct gpu *gpu) {
  uint64_t sum = gpu->used_before;
  struct entry *entries = record();
  int file = open(setting("STAND_IN_RECORD", "/dev/shm/nvidia-stand-in"), O_RDWR | O_CLOEXEC);
  for (int i = 0; entries && file >= 0 && i < ENTRIES; i++) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i * sizeof(struct entry), .l_len = 1};
    if (entries[i].pid && !strcmp(entries[i].uuid, gpu->uuid) && !fcntl(file, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK)
      sum += entries[i].bytes;
  }
  if (file >= 0) close(file);
  return sum;
}

// Choose GPUs as CUDA_VISIBLE_DEVICES says: numbers or (the beginning of) UUIDs, in its order, up to the first that is unknown.
static int choose_visible(const struct gpu *usable, int count, struct gpu *visible) {
  const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
  int found = 0;
  if (!wanted) {
    memcpy(visible, usable, count * sizeof *usable);
    return count;
  }
  char text[2048], *rest = text, *word;
  snprintf(text, sizeof text, "%s", wanted);
  while ((word = strsep(&rest, ",")) && found < MAX_GPUS) {
    int match = -1, matches = 0;
    char *end;
    long number = strtol(word, &end, 10);
    if (*word && !*end && number >= 0 && number < count) match = number, matches = 1;
    for (int i = 0; i < count && !strncmp(word, "GPU-", 4); i++)
      if (!strncmp(usable[i].uuid, word, strlen(word))) match = i, matches++;
    if (matches != 1) break;
    visible[found++] = usable[match];
  }
  return found;
}
