/*
 * messages.c: producer and consumer in two containers of one pod, over a System V message queue (msgop(2)).
 *
 *   messages consumer FILE        appends each message to FILE; ends with the exit message and takes the queue away
 *   messages producer COUNT       sends "message 1" to "message COUNT", then the exit message
 *
 * The containers of a pod share its IPC namespace, so a key means the same queue to both, and none to anybody else.
 *
 * Order of start: none is needed. Whoever comes first makes the queue (IPC_CREAT), and messages wait in it for the other. The exit
 * message has a type of its own and is sent last; the queue hands messages out in the order they were sent, so nothing is behind it.
 */
#define _XOPEN_SOURCE 700 /* System V IPC, dprintf */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <unistd.h>

enum { KEY = 0x706f6473, WORK = 1, EXIT = 2 };

struct message {
    long type;
    char text[64];
};

static int fail(const char *what)
{
    fprintf(stderr, "messages: %s: %s\n", what, strerror(errno));
    return 1;
}

static int produce(int queue, long count)
{
    struct message message = {.type = WORK};
    for (long i = 1; i <= count; i++) {
        int length = snprintf(message.text, sizeof message.text, "message %ld", i);
        if (msgsnd(queue, &message, (size_t)length, 0) != 0) /* waits while the queue is full */
            return fail("msgsnd");
    }
    message.type = EXIT;
    return msgsnd(queue, &message, 0, 0) == 0 ? 0 : fail("msgsnd of the exit message");
}

static int consume(int queue, const char *path)
{
    struct message message;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0)
        return fail(path);
    for (;;) {
        ssize_t length = msgrcv(queue, &message, sizeof message.text, 0, 0); /* the next one of any type */
        if (length < 0 && errno == EINTR)
            continue;
        if (length < 0)
            return fail("msgrcv");
        if (message.type == EXIT)
            break;
        dprintf(file, "%.*s\n", (int)length, message.text);
    }
    dprintf(file, "exit\n");
    return msgctl(queue, IPC_RMID, NULL) == 0 ? 0 : fail("msgctl");
}

int main(int argc, char **argv)
{
    if (argc != 3 || (strcmp(argv[1], "producer") != 0 && strcmp(argv[1], "consumer") != 0)) {
        fprintf(stderr, "usage: messages consumer FILE | messages producer COUNT\n");
        return 2;
    }
    int queue = msgget(KEY, IPC_CREAT | 0600);
    if (queue < 0)
        return fail("msgget");
    return argv[1][0] == 'p' ? produce(queue, strtol(argv[2], NULL, 10)) : consume(queue, argv[2]);
}
