/*
 * latency.c: request and response over UDP, one request outstanding, each round trip into a histogram.
 *
 * Both sides block in the kernel, as programs do: the time of waking them is part of what a user sees.
 */
#include "bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#define PAYLOAD_MAX 1472u

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t ns) {
    struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* Wait for the answer to `sequence`, passing over late ones to earlier requests. 1: it came, 0: time is up, -errno. */
static int await_answer(int socket, uint64_t sequence, uint64_t until_ns) {
    uint8_t answer[PAYLOAD_MAX];
    for (;;) {
        uint64_t now_ns = clock_ns();
        if (now_ns >= until_ns)
            return 0;
        struct timespec left = {.tv_sec = (time_t)((until_ns - now_ns) / 1000000000u),
                                .tv_nsec = (long)((until_ns - now_ns) % 1000000000u)};
        struct pollfd wait = {.fd = socket, .events = POLLIN};
        int ready = ppoll(&wait, 1, &left, NULL);
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (ready <= 0)
            continue;
        ssize_t bytes = recv(socket, answer, sizeof answer, MSG_DONTWAIT);
        struct fb_probe probe;
        if (bytes < (ssize_t)sizeof probe)
            continue;
        memcpy(&probe, answer, sizeof probe);
        if (probe.magic == FB_MAGIC && probe.sequence == sequence)
            return 1;
    }
}

/* One request; its answer goes into the histogram. 0 or -errno. */
static int ask_once(int socket, const struct fb_ask *what, uint8_t *payload, struct fb_answers *out) {
    struct fb_probe probe = {.magic = FB_MAGIC, .sequence = out->requests};
    memcpy(payload, &probe, sizeof probe);
    const uint64_t asked_ns = clock_ns();
    out->requests++;
    if (send(socket, payload, what->payload_bytes, 0) < 0) {
        if (errno != ENOBUFS && errno != EAGAIN && errno != ECONNREFUSED)
            return -errno;
        out->lost++;
        return 0;
    }
    int came = await_answer(socket, probe.sequence, asked_ns + what->timeout_ns);
    if (came > 0)
        fb_histogram_add(&out->round_trip, clock_ns() - asked_ns);
    else if (came == 0)
        out->lost++;
    return came < 0 ? came : 0;
}

int fb_ask(int socket, const struct fb_ask *what, struct fb_answers *out) {
    uint8_t payload[PAYLOAD_MAX] = {0};
    memset(out, 0, sizeof *out);
    if (what->payload_bytes < FB_PROBE_BYTES || what->payload_bytes > PAYLOAD_MAX)
        return -EINVAL;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    const uint64_t begin_ns = clock_ns();
    uint64_t next_ns = begin_ns;
    int error = 0;
    while (error == 0 && out->requests < what->requests && clock_ns() - begin_ns < what->duration_ns) {
        error = ask_once(socket, what, payload, out);
        next_ns += what->interval_ns;
        const uint64_t now_ns = clock_ns();
        if (what->interval_ns != 0 && next_ns > now_ns)
            sleep_until(next_ns);
        else
            next_ns = now_ns; /* late: do not hurry after the schedule */
    }
    return error;
}

int fb_answer(int socket, int stop, uint64_t deadline_ns) {
    uint8_t data[PAYLOAD_MAX];
    const uint64_t begin_ns = clock_ns();
    while (clock_ns() - begin_ns < deadline_ns) {
        struct pollfd waits[2] = {{.fd = socket, .events = POLLIN}, {.fd = stop, .events = POLLIN}};
        if (poll(waits, 2, 100) < 0 && errno != EINTR)
            return -errno;
        if (waits[1].revents != 0)
            return 0;
        struct sockaddr_in from;
        socklen_t from_bytes = sizeof from;
        ssize_t bytes = recvfrom(socket, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &from_bytes);
        if (bytes >= 0)
            (void)sendto(socket, data, (size_t)bytes, 0, (struct sockaddr *)&from, from_bytes); /* a lost answer is the asker's to see */
    }
    return 0;
}
