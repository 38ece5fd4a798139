/* Sees every call that changes a file below one folder, counts it, and at a chosen one kills the
 * process or fails. Loaded with LD_PRELOAD; armed from Python through `shim_arm`. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FAIL, KILL_AFTER };

static char root[PATH_MAX];
static size_t root_length;
static int mode = OFF, error_number, log_fd = -1, all_opens;
static long calls, at;
static __thread int inside;
static __thread long own; /* number of this thread's last call */

/* Count calls below `folder`; mode 2 kills before call number `n` (from 0), mode 4 after it (after
 * a write at once: safetensors then renames by a system call of its own, which nobody sees), mode 3
 * lets that call and all after it fail with `error`. Calls are written to `log`, if that is a file:
 * a line each, and the bytes that are written. `opens` counts opening for reading, too. */
void shim_arm(const char *folder, int how, long n, int error, int log, int opens) {
  snprintf(root, sizeof root, "%s", folder);
  root_length = strlen(root);
  calls = 0; own = -1; at = n; error_number = error; log_fd = log; all_opens = opens; mode = how;
}
long shim_calls(void) { return calls; }
void shim_disarm(void) { mode = OFF; }

static int below(const char *path) {
  return path && !strncmp(path, root, root_length) &&
         (path[root_length] == '/' || path[root_length] == 0);
}

static const char *of_fd(int fd, char *buffer) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, buffer, PATH_MAX - 1);
  if (n < 0) return NULL;
  buffer[n] = 0;
  return buffer;
}

static const char *absolute(int dir, const char *path, char *buffer) {
  char folder[PATH_MAX];
  if (!path) return NULL;
  if (path[0] == '/') return path;
  if (dir == AT_FDCWD) {
    if (!getcwd(folder, sizeof folder)) return NULL;
  } else if (!of_fd(dir, folder)) return NULL;
  if (snprintf(buffer, PATH_MAX, "%s/%s", folder, path) >= PATH_MAX) return NULL;
  return buffer;
}

/* safetensors writes to a file .tmpXXXXXX and renames it by a system call of its own, which no
 * library sees: the log gets that rename when the file has another name. */
static char hidden[PATH_MAX];
static ino_t hidden_inode;

static void watch_hidden(const char *path) {
  const char *name = strrchr(path, '/');
  struct stat found;
  if (name && !strncmp(name, "/.tmp", 5) && strlen(name) == 11 && !stat(path, &found)) {
    snprintf(hidden, sizeof hidden, "%s", path);
    hidden_inode = found.st_ino;
  }
}

static void log_hidden(void) {
  struct stat found;
  if (!hidden[0] || !stat(hidden, &found)) return;
  char *name = strrchr(hidden, '/');
  *name++ = 0;
  DIR *folder = opendir(hidden);
  for (struct dirent *entry; folder && (entry = readdir(folder));)
    if (entry->d_ino == hidden_inode)
      dprintf(log_fd, "rename\t%s/%s\t%s/%s\t0\t0\n", hidden, name, hidden, entry->d_name);
  if (folder) closedir(folder);
  hidden[0] = 0;
}

/* Returns whether the call must fail; errno is then set. */
static int seen(const char *what, const char *one, const char *two, long offset, const void *data,
                size_t size) {
  if (mode == OFF || inside || !(below(one) || below(two))) return 0;
  inside = 1;
  long number = own = calls++;
  if ((mode == KILL && number == at) || (mode == KILL_AFTER && number > at)) { kill(getpid(), SIGKILL); pause(); }
  int failing = mode == FAIL && number >= at;
  if (log_fd >= 0 && !failing) {
    log_hidden();
    dprintf(log_fd, "%s\t%s\t%s\t%ld\t%zu\n", what, one ? one : "", two ? two : "", offset,
            data ? size : 0);
    if (data && size && write(log_fd, data, size) < 0) _exit(70);
    if (data && one) watch_hidden(one);
  }
  inside = 0;
  if (failing) errno = error_number;
  return failing;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int opening(int dir, const char *path, int flags) {
  char buffer[PATH_MAX];
  int changes = flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY;
  if (mode == OFF || inside || !(changes || all_opens)) return 0;
  const char *full = absolute(dir, path, buffer);
  if (!changes) return seen("read", full, NULL, 0, NULL, 0);
  struct stat found;
  int fresh = full && stat(full, &found) != 0;
  return seen(fresh ? "create" : flags & O_TRUNC ? "truncate" : "open", full, NULL, 0, NULL, 0);
}

#define OPEN(name, ...) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
    if (opening(AT_FDCWD, path, flags)) return -1; \
    return real(path, flags, bits); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
  int name(int dir, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
    if (opening(dir, path, flags)) return -1; \
    return real(dir, path, flags, bits); \
  }
OPENAT(openat)
OPENAT(openat64)

static int writing(int fd, const void *data, size_t size, long offset) {
  char buffer[PATH_MAX];
  if (mode == OFF || inside || fd == log_fd) return 0;
  const char *path = of_fd(fd, buffer);
  if (!path || path[0] != '/') return 0;
  if (offset < 0) offset = fcntl(fd, F_GETFL) & O_APPEND ? -1 : lseek(fd, 0, SEEK_CUR);
  return seen("write", path, NULL, offset, data, size);
}
static ssize_t written(ssize_t done) {
  if (mode == KILL_AFTER && own == at) { kill(getpid(), SIGKILL); pause(); }
  return done;
}
ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (writing(fd, data, size, -1)) return -1;
  return written(real(fd, data, size));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
  REAL(pwrite64);
  if (writing(fd, data, size, offset)) return -1;
  return written(real(fd, data, size, offset));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  char buffer[PATH_MAX];
  const char *path = mode == OFF || inside ? NULL : of_fd(fd, buffer);
  if (path && below(path)) {  /* one part at a time, each a call of its own */
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
      ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
      if (done < 0) return total ? total : -1;
      total += done;
    }
    return total;
  }
  return real(fd, parts, count);
}
/* Copies inside the kernel become reads and writes that are seen. */
ssize_t sendfile64(int out, int in, off_t *offset, size_t size) {
  static ssize_t (*real)(int, int, off_t *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
  char buffer[PATH_MAX];
  const char *path = mode == OFF || inside ? NULL : of_fd(out, buffer);
  if (!path || !below(path)) return real(out, in, offset, size);
  char data[1 << 16];
  size_t wanted = size < sizeof data ? size : sizeof data;
  ssize_t got = offset ? pread(in, data, wanted, *offset) : read(in, data, wanted);
  if (got <= 0) return got;
  ssize_t done = write(out, data, got);
  if (done > 0 && offset) *offset += done;
  return done;
}
ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t size, unsigned flags) {
  static ssize_t (*real)(int, off_t *, int, off_t *, size_t, unsigned);
  if (!real) real = dlsym(RTLD_NEXT, "copy_file_range");
  char buffer[PATH_MAX];
  const char *path = mode == OFF || inside ? NULL : of_fd(out, buffer);
  if (path && below(path)) { errno = EXDEV; return -1; }
  return real(in, in_at, out, out_at, size, flags);
}

#define ONE(name, what) \
  int name(const char *path) { \
    REAL(name); \
    char buffer[PATH_MAX]; \
    if (mode != OFF && !inside && seen(what, absolute(AT_FDCWD, path, buffer), NULL, 0, NULL, 0)) \
      return -1; \
    return real(path); \
  }
ONE(unlink, "unlink")
ONE(rmdir, "rmdir")
int unlinkat(int dir, const char *path, int flags) {
  REAL(unlinkat);
  char buffer[PATH_MAX];
  const char *what = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
  if (mode != OFF && !inside && seen(what, absolute(dir, path, buffer), NULL, 0, NULL, 0)) return -1;
  return real(dir, path, flags);
}
int mkdir(const char *path, mode_t bits) {
  REAL(mkdir);
  char buffer[PATH_MAX];
  if (mode != OFF && !inside && seen("mkdir", absolute(AT_FDCWD, path, buffer), NULL, 0, NULL, 0))
    return -1;
  return real(path, bits);
}
int mkdirat(int dir, const char *path, mode_t bits) {
  REAL(mkdirat);
  char buffer[PATH_MAX];
  if (mode != OFF && !inside && seen("mkdir", absolute(dir, path, buffer), NULL, 0, NULL, 0))
    return -1;
  return real(dir, path, bits);
}
static int renaming(int from_dir, const char *from, int to_dir, const char *to) {
  char one[PATH_MAX], two[PATH_MAX];
  if (mode == OFF || inside) return 0;
  return seen("rename", absolute(from_dir, from, one), absolute(to_dir, to, two), 0, NULL, 0);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  if (renaming(AT_FDCWD, from, AT_FDCWD, to)) return -1;
  return real(from, to);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
  REAL(renameat);
  if (renaming(from_dir, from, to_dir, to)) return -1;
  return real(from_dir, from, to_dir, to);
}
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  REAL(renameat2);
  if (renaming(from_dir, from, to_dir, to)) return -1;
  return real(from_dir, from, to_dir, to, flags);
}
static int of_descriptor(const char *what, int fd, long offset) {
  char buffer[PATH_MAX];
  if (mode == OFF || inside) return 0;
  return seen(what, of_fd(fd, buffer), NULL, offset, NULL, 0);
}
int fsync(int fd) {
  REAL(fsync);
  if (of_descriptor("fsync", fd, 0)) return -1;
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  if (of_descriptor("fsync", fd, 0)) return -1;
  return real(fd);
}
int ftruncate64(int fd, off_t size) {
  REAL(ftruncate64);
  if (of_descriptor("resize", fd, size)) return -1;
  return real(fd, size);
}
