/*
 * clock_shift.c: a preloaded library that moves a process's wall clock, and no other clock, by the seconds that stand in the file
 * CLOCK_SHIFT_FILE names (read at each look, so that the clock can jump while the process runs). For tests: a time namespace moves only
 * the monotonic clocks, and the machine's own clock is not ours to set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift_s(void)
{
    const char *path = getenv("CLOCK_SHIFT_FILE");
    FILE *file = path == NULL ? NULL : fopen(path, "re");
    long shift = 0;
    if (file == NULL)
        return 0;
    if (fscanf(file, "%ld", &shift) != 1)
        shift = 0;
    fclose(file);
    return shift;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int error = real(clock, now);
    if (error == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += shift_s();
    return error;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0)
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result != NULL)
        *result = now.tv_sec;
    return now.tv_sec;
}
