/* A wall clock that is set an hour forth and an hour back by turns, every tenth of a second:
   preloaded before libc. The monotonic clock goes on as it does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static time_t off(void) {
    struct timespec now;
    NEXT(clock_gettime)(CLOCK_MONOTONIC, &now);
    return now.tv_nsec / 100000000 % 2 ? 3600 : -3600;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int status = NEXT(clock_gettime)(which, now);
    if (which == CLOCK_REALTIME)
        now->tv_sec += off();
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    int status = NEXT(gettimeofday)(now, zone);
    now->tv_sec += off();
    return status;
}

time_t time(time_t *at) {
    time_t now = NEXT(time)(NULL) + off();
    if (at)
        *at = now;
    return now;
}
