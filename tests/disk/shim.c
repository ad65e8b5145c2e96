/* Lets the disk fail: preloaded before libc, armed from Python through ctypes.

   From call number `at` on, counting those on files below `under`, writes (op 0) or reads and
   opens (op 1) fail with the errno that was given. at 0 counts and lets everything pass. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char under[4096];
static int op = -1, error;
static long at, count;

void disk_arm(const char *folder, int which, long from, int with) {
    strncpy(under, folder, sizeof under - 1);
    op = which;
    at = from;
    error = with;
    count = 0;
}

long disk_disarm(void) {
    op = -1;
    return count;
}

static int below(const char *path) { return strncmp(path, under, strlen(under)) == 0; }

static int due(int which, int fd, const char *path) {
    char link[64], name[4096];
    if (op != which)
        return 0;
    if (path == NULL) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, name, sizeof name - 1);
        if (n < 0)
            return 0;
        name[n] = 0;
        path = name;
    }
    if (!below(path))
        return 0;
    count++;
    if (at == 0 || count < at)
        return 0;
    errno = error;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t n) {
    return due(0, fd, NULL) ? -1 : NEXT(write)(fd, data, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t place) {
    return due(0, fd, NULL) ? -1 : NEXT(pwrite64)(fd, data, n, place);
}
int fsync(int fd) { return due(0, fd, NULL) ? -1 : NEXT(fsync)(fd); }
int rename(const char *from, const char *to) {
    return due(0, -1, to) ? -1 : NEXT(rename)(from, to);
}
ssize_t read(int fd, void *data, size_t n) {
    return due(1, fd, NULL) ? -1 : NEXT(read)(fd, data, n);
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_DIRECTORY) && due(1, -1, path))
        return -1;
    return NEXT(open64)(path, flags, mode);
}
