/*
 * main.c: flanpy-datapath, the process that carries packets between the TUN device and the underlay. The agent starts it; it outlives
 * the agent, and the agent outlives it.
 *
 * Theory of operation
 *
 * It begins with two descriptors: 3, a bound Unix socket in the agent's run directory, and 4, a connection to the agent that starts it.
 * It gives up every privilege first, then waits for START, which brings the TUN queues, the UDP sockets and pages for the counters;
 * makes the worker threads (worker.c), shuts itself in (filter.c), and only then takes a table, without which no packet is read.
 *
 *   drop privileges -> listen -> START: threads -> limits, filter -> TABLE: packets flow -> TABLE ... -> STOP: threads end -> exit
 *                                              (HOLD -> TABLE, or those who said HOLD and who read the queues are both gone)
 *
 * The main thread serves the socket and does nothing else; packets are the workers'. Nothing that a client does or leaves undone
 * holds the workers up: replies are sent without waiting, and a client that does not take them is hung up on.
 *
 * Who may talk: root and the user that started us, by the credentials that the kernel keeps of the connection (SO_PEERCRED).
 *
 * Failures.
 *   agent gone     its connection closes; the workers go on with the last table. Before START nobody is left to bring it: we end
 *   agent hangs    nothing is asked of it
 *   we are killed  the agent holds the same descriptors: packets wait in the TUN queue and the sockets until it has started another
 *   TUN deleted    the workers say so in the counters' pages and sleep (worker.c); the agent sees it there
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"

enum { LISTENER_FD = 3, PIDFD = 3, CONNECTION_FD = 4, FIRST_FOREIGN_FD = 5 };

static int usage(void)
{
    fprintf(stderr, "flanpy-datapath carries packets for `flanpy agent`, which starts it; it is not for use by hand.\n"
                    "`flanpy status` shows it, `flanpy cleanup` ends it.\n");
    return 2;
}

/* A decimal id; false for anything else. (uid_t)-1 means "no change" to the kernel, so it is no id. */
static bool read_id(const char *text, uint32_t *id)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || value >= UINT32_MAX)
        return false;
    *id = (uint32_t)value;
    return true;
}

/*
 * An agent that has given up CAP_KILL ends a process that does not listen as the user that it runs as: `UID GID --end`, and the process
 * as a pidfd, which can be nobody else's by now. The exit status is the errno, 0 when the signal was sent.
 */
static int end_another(void)
{
    return syscall(SYS_pidfd_send_signal, PIDFD, SIGKILL, NULL, 0) == 0 ? 0 : errno;
}

/* Descriptors that were open in the agent by an oversight are none of our business, least of all in here. */
static void close_foreign_descriptors(void)
{
    syscall(SYS_close_range, FIRST_FOREIGN_FD, ~0u, 0);
}

int main(int argc, char **argv)
{
    struct process process = {.listener = LISTENER_FD, .starter = geteuid(), .pages_fd = -1, .table_fd = -1, .held_fd = -1, .other_fd = -1};
    uint32_t uid, gid;
    bool forbidden = argc == 4 && strcmp(argv[3], "--try-forbidden") == 0;
    bool unfiltered = argc == 4 && strcmp(argv[3], "--try-unfiltered") == 0;
    bool end = argc == 4 && strcmp(argv[3], "--end") == 0;

    if ((argc != 3 && !forbidden && !unfiltered && !end) || !read_id(argv[1], &uid) || !read_id(argv[2], &gid))
        return usage();
    process.confined = process_drop_privileges(uid, gid);
    if (end)
        return end_another();
    if (forbidden || unfiltered)
        return process_try_forbidden(forbidden);
    close_foreign_descriptors();
    if (chdir("/") != 0) /* keeps no mount busy */
        return usage();
    for (size_t i = 0; i < PROCESS_CONNECTIONS_MAX; i++)
        process.connections[i] = -1;
    process.connections[0] = CONNECTION_FD;
    /* Only now: whoever connects sees the credentials of the listener, which should be ours and not the agent's. */
    if (listen(LISTENER_FD, PROCESS_CONNECTIONS_MAX) != 0)
        return usage();
    process_serve(&process);
    return 0;
}
