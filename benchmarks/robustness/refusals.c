/* Refuses what a process asks of the file system: the n-th operation of a kind below a folder, or
 * every one from then on. io_errors.py preloads it, so that it stands before all libraries.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, WRITE, SYNC, RENAME, MKDIR, KINDS };

static char folder[PATH_MAX];
static size_t length;
static int kinds; /* as bits: those that are counted and refused */
static long last;
static int number, always;
static atomic_long seen[KINDS], counted;

/* From now on: operations of these kinds are counted, and the n-th ends with an error; 0: none. */
void refuse(const char *below, int which, long nth, int error, int from_then_on) {
    length = strlen(below);
    strcpy(folder, below);
    kinds = which, last = nth, number = error, always = from_then_on;
}

/* How many operations of a kind there were. */
long touches(int kind) { return seen[kind]; }

static int touched(enum kind kind, const char *path) {
    if (strncmp(path, folder, length) || path[length] != '/' || !(kinds & 1 << kind)) return 0;
    if (!strcmp(path + length, "/said.txt") || !strcmp(path + length, "/printed.txt")) return 0;
    seen[kind]++;
    long nth = ++counted;
    if (!last || nth < last || (nth > last && !always)) return 0;
    errno = number;
    return 1;
}

static int descriptor(enum kind kind, int file) {
    char link[64], path[PATH_MAX];
    if (!length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return touched(kind, path);
}

static int named(enum kind kind, int at, const char *name) {
    char link[64], path[2 * PATH_MAX];
    if (!length) return 0;
    if (name[0] == '/') return touched(kind, name);
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    snprintf(path + size, PATH_MAX, "/%s", name);
    return touched(kind, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static mode_t mode_of(int flags, va_list more) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

#define OPENS(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                   \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode_t mode = mode_of(flags, more);                                                        \
        va_end(more);                                                                              \
        return named(OPEN, AT_FDCWD, path) ? -1 : REAL(name)(path, flags, mode);                   \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                             \
    int name(int at, const char *path, int flags, ...) {                                           \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode_t mode = mode_of(flags, more);                                                        \
        va_end(more);                                                                              \
        return named(OPEN, at, path) ? -1 : REAL(name)(at, path, flags, mode);                     \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

FILE *fopen(const char *path, const char *mode) {
    return named(OPEN, AT_FDCWD, path) ? NULL : REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    return named(OPEN, AT_FDCWD, path) ? NULL : REAL(fopen64)(path, mode);
}

#define BY_DESCRIPTOR(type, name, kind, parameters, arguments)                                     \
    type name parameters { return descriptor(kind, file) ? -1 : REAL(name) arguments; }
BY_DESCRIPTOR(ssize_t, write, WRITE, (int file, const void *from, size_t n), (file, from, n))
BY_DESCRIPTOR(ssize_t, pwrite, WRITE, (int file, const void *from, size_t n, off_t at),
              (file, from, n, at))
BY_DESCRIPTOR(ssize_t, pwrite64, WRITE, (int file, const void *from, size_t n, off64_t at),
              (file, from, n, at))
BY_DESCRIPTOR(ssize_t, writev, WRITE, (int file, const struct iovec *from, int n), (file, from, n))
BY_DESCRIPTOR(int, ftruncate, WRITE, (int file, off_t size), (file, size))
BY_DESCRIPTOR(int, ftruncate64, WRITE, (int file, off64_t size), (file, size))
BY_DESCRIPTOR(int, fsync, SYNC, (int file), (file))
BY_DESCRIPTOR(int, fdatasync, SYNC, (int file), (file))

/* The one of these whose error is not in errno. */
int posix_fallocate(int file, off_t at, off_t n) {
    return descriptor(WRITE, file) ? number : REAL(posix_fallocate)(file, at, n);
}
int posix_fallocate64(int file, off64_t at, off64_t n) {
    return descriptor(WRITE, file) ? number : REAL(posix_fallocate64)(file, at, n);
}

int rename(const char *from, const char *to) {
    return named(RENAME, AT_FDCWD, from) ? -1 : REAL(rename)(from, to);
}
int renameat(int at, const char *from, int there, const char *to) {
    return named(RENAME, at, from) ? -1 : REAL(renameat)(at, from, there, to);
}
int mkdir(const char *path, mode_t mode) {
    return named(MKDIR, AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    return named(MKDIR, at, path) ? -1 : REAL(mkdirat)(at, path, mode);
}
