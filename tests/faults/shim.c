/* Makes file operations fail, to test what ctcovid does when the machine fails. Preloaded with LD_PRELOAD.

   FAULT_PREFIX   paths that begin with one of these, separated by colons, are watched
   FAULT_ERRNO    the error that a watched call ends with
   FAULT_AT       the number of the call, among the watched calls of the kinds, that fails; 0 for none
   FAULT_FOR      how many calls fail from there on; 0 for all
   FAULT_KINDS    letters: o open, r read, w write, m map, l lock, n rename, s sync, t stat, d list a folder */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 65536
static atomic_char watched[FILES];
static atomic_long calls;
#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static long number(const char *name) { const char *text = getenv(name); return text ? atol(text) : 0; }

static int is_watched(const char *path) {
    const char *list = getenv("FAULT_PREFIX");
    if (!path || !list) return 0;
    while (*list) {
        size_t length = strcspn(list, ":");
        if (length && !strncmp(path, list, length)) return 1;
        list += length + (list[length] == ':');
    }
    return 0;
}

static int by_file(int file) { return file >= 0 && file < FILES && watched[file]; }

/* Whether this call is to fail; errno is set then. */
static int fails(char kind) {
    const char *kinds = getenv("FAULT_KINDS");
    if (!kinds || !strchr(kinds, kind)) return 0;
    long call = atomic_fetch_add(&calls, 1) + 1, at = number("FAULT_AT"), most = number("FAULT_FOR");
    if (!at || call < at || (most && call >= at + most)) return 0;
    errno = (int)number("FAULT_ERRNO");
    return 1;
}

/* For a process that was forked: count from here. Returns the number of calls so far. */
long fault_begin(void) { return atomic_exchange(&calls, 0); }

static int opened(int file, const char *path) {
    if (file >= 0 && file < FILES) watched[file] = (char)is_watched(path);
    return file;
}

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
#define OPEN(name) int name(const char *path, int flags, ...) { MODE(flags) NEXT(name); \
    if (is_watched(path) && fails('o')) return -1; return opened(next(path, flags, mode), path); }
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { MODE(flags) NEXT(name); \
    if (is_watched(path) && fails('o')) return -1; return opened(next(folder, path, flags, mode), path); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *path, const char *mode) { NEXT(name); \
    if (is_watched(path) && fails('o')) return NULL; FILE *file = next(path, mode); if (file) opened(fileno(file), path); return file; }
FOPEN(fopen) FOPEN(fopen64)
int close(int file) { NEXT(close); if (file >= 0 && file < FILES) watched[file] = 0; return next(file); }

#define BY_FILE(kind, type, name, declared, given) type name declared { NEXT(name); if (by_file(file) && fails(kind)) return -1; return next given; }
BY_FILE('r', ssize_t, read, (int file, void *to, size_t count), (file, to, count))
BY_FILE('r', ssize_t, pread, (int file, void *to, size_t count, off_t at), (file, to, count, at))
BY_FILE('r', ssize_t, pread64, (int file, void *to, size_t count, off64_t at), (file, to, count, at))
BY_FILE('w', ssize_t, write, (int file, const void *from, size_t count), (file, from, count))
BY_FILE('w', ssize_t, pwrite, (int file, const void *from, size_t count, off_t at), (file, from, count, at))
BY_FILE('w', ssize_t, pwrite64, (int file, const void *from, size_t count, off64_t at), (file, from, count, at))
BY_FILE('w', int, ftruncate, (int file, off_t size), (file, size))
BY_FILE('w', int, ftruncate64, (int file, off64_t size), (file, size))
BY_FILE('s', int, fsync, (int file), (file))
BY_FILE('s', int, fdatasync, (int file), (file))
BY_FILE('l', int, flock, (int file, int how), (file, how))
BY_FILE('t', int, fstat, (int file, struct stat *to), (file, to))
BY_FILE('t', int, fstat64, (int file, struct stat64 *to), (file, to))
int fcntl(int file, int what, ...) {
    va_list more; va_start(more, what); void *how = va_arg(more, void *); va_end(more);
    NEXT(fcntl);
    if ((what == F_SETLK || what == F_SETLKW) && by_file(file) && fails('l')) return -1;
    return next(file, what, how);
}
int fcntl64(int file, int what, ...) {
    va_list more; va_start(more, what); void *how = va_arg(more, void *); va_end(more);
    NEXT(fcntl64);
    if ((what == F_SETLK || what == F_SETLKW) && by_file(file) && fails('l')) return -1;
    return next(file, what, how);
}
#define MAP(name, offset) void *name(void *where, size_t size, int how, int flags, int file, offset at) { NEXT(name); \
    if (!(flags & MAP_ANONYMOUS) && by_file(file) && fails('m')) return MAP_FAILED; return next(where, size, how, flags, file, at); }
MAP(mmap, off_t) MAP(mmap64, off64_t)

#define BY_PATH(kind, name, declared, given) int name declared { NEXT(name); if (is_watched(path) && fails(kind)) return -1; return next given; }
BY_PATH('t', stat, (const char *path, struct stat *to), (path, to))
BY_PATH('t', stat64, (const char *path, struct stat64 *to), (path, to))
BY_PATH('t', lstat, (const char *path, struct stat *to), (path, to))
BY_PATH('t', lstat64, (const char *path, struct stat64 *to), (path, to))
BY_PATH('t', fstatat, (int folder, const char *path, struct stat *to, int flags), (folder, path, to, flags))
BY_PATH('t', fstatat64, (int folder, const char *path, struct stat64 *to, int flags), (folder, path, to, flags))
BY_PATH('n', rename, (const char *path, const char *to), (path, to))
BY_PATH('n', renameat, (int one, const char *path, int other, const char *to), (one, path, other, to))
BY_PATH('o', mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH('t', access, (const char *path, int mode), (path, mode))
DIR *opendir(const char *path) { NEXT(opendir); if (is_watched(path) && fails('d')) return NULL; return next(path); }
