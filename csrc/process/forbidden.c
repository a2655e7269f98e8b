/*
 * forbidden.c: `flanpy-datapath UID GID --try-forbidden`: confine ourselves as for packets, then try what an intruder would, in a thread that
 * was there before the filter, and print one line for each: the name of the attempt, and the error or "worked".
 * `--try-unfiltered` does so without the filter, and only what changes nothing: then some of it works, which shows that the rest can fail.
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"

#define THREADS 2u

static uint8_t page[4096] __attribute__((aligned(4096)));

struct attempt {
    const char *name;
    bool changes; /* something, if it works */
    long number;
    long arguments[6];
};

#define POINTER(value) ((long)(intptr_t)(value))

/* Each of these works for an ordinary process of root; none of them may here. A descriptor of 0 is standard input. */
static const char *const arguments[] = {"/bin/true", NULL};

static size_t list_attempts(struct attempt *list)
{
    const struct attempt all[] = {
        {"open", false, SYS_openat, {AT_FDCWD, POINTER("/etc/hostname"), O_RDONLY}},
        {"create", true, SYS_openat, {AT_FDCWD, POINTER("/tmp/flanpy-forbidden"), O_RDWR | O_CREAT, 0600}},
        {"stat", false, SYS_statx, {AT_FDCWD, POINTER("/"), 0, 0, POINTER(page)}},
        {"unlink", true, SYS_unlinkat, {AT_FDCWD, POINTER("/tmp/flanpy-forbidden"), 0}},
        {"mount", true, SYS_mount, {POINTER("none"), POINTER("/tmp"), POINTER("tmpfs"), 0, 0}},
        {"chroot", true, SYS_chroot, {POINTER("/")}},
        {"socket", false, SYS_socket, {AF_INET, SOCK_DGRAM, 0}},
        {"raw_socket", true, SYS_socket, {AF_PACKET, SOCK_RAW, 0}},
        {"netlink", false, SYS_socket, {AF_NETLINK, SOCK_RAW, 0}},
        {"bind", true, SYS_bind, {0, POINTER(page), 2}},
        {"ioctl", true, SYS_ioctl, {0, SIOCGIFFLAGS, POINTER(page)}},
        {"dup", false, SYS_dup, {0}},
        {"fcntl", false, SYS_fcntl, {0, F_DUPFD, 0}},
        {"execve", true, SYS_execve, {POINTER("/bin/true"), POINTER(arguments), 0}},
        {"fork", true, SYS_clone, {SIGCHLD, 0, 0, 0, 0}},
        {"thread", true, SYS_clone, {CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, 0, 0, 0, 0}},
        {"kill", true, SYS_kill, {1, 0}},
        {"kill_self", false, SYS_kill, {0, 0}},
        {"ptrace", true, SYS_ptrace, {PTRACE_TRACEME, 0, 0, 0}},
        {"process_vm_readv", true, SYS_process_vm_readv, {1, 0, 0, 0, 0, 0}},
        {"pidfd_open", false, SYS_pidfd_open, {1, 0}},
        {"setuid", true, SYS_setuid, {0}},
        {"capset", true, SYS_capset, {0, 0}},
        {"prctl", true, SYS_prctl, {PR_SET_DUMPABLE, 1, 0, 0, 0}},
        {"unshare", true, SYS_unshare, {CLONE_NEWUSER}},
        {"setns", true, SYS_setns, {0, 0}},
        {"bpf", true, SYS_bpf, {0, POINTER(page), 64}},
        {"perf_event_open", true, SYS_perf_event_open, {POINTER(page), 0, -1, -1, 0}},
        {"io_uring", true, SYS_io_uring_setup, {1, POINTER(page)}},
        {"memfd_create", false, SYS_memfd_create, {POINTER("x"), 0}},
        {"userfaultfd", true, SYS_userfaultfd, {0}},
        {"prlimit", false, SYS_prlimit64, {0, RLIMIT_NOFILE, 0, POINTER(page)}},
        {"keyctl", true, SYS_keyctl, {0, -3, 0}},
        {"init_module", true, SYS_init_module, {POINTER(page), 8, POINTER("")}},
        {"mmap_executable", false, SYS_mmap, {0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}},
        {"mprotect_executable", true, SYS_mprotect, {POINTER(page), 4096, PROT_READ | PROT_EXEC}},
    };

    memcpy(list, all, sizeof(all));
    return sizeof(all) / sizeof(*all);
}

static bool try_one(const struct attempt *attempt)
{
    const long *a = attempt->arguments;
    long result = syscall(attempt->number, a[0], a[1], a[2], a[3], a[4], a[5]);
    int error = errno;

    if (result == 0 && strcmp(attempt->name, "fork") == 0)
        syscall(SYS_exit_group, 0); /* we are the child that should not be */
    printf("%s %s\n", attempt->name, result < 0 ? strerrorname_np(error) : "worked");
    return result >= 0;
}

struct trial {
    bool filter;
    pthread_barrier_t running, filtered;
    bool worked;
};

static void *try_all(void *argument)
{
    struct trial *trial = argument;
    struct attempt attempts[64];
    size_t count = list_attempts(attempts);

    pthread_barrier_wait(&trial->running);
    pthread_barrier_wait(&trial->filtered);
    for (size_t i = 0; i < count; i++) {
        if (attempts[i].changes && !trial->filter)
            continue;
        trial->worked |= try_one(&attempts[i]);
    }
    return NULL;
}

int process_try_forbidden(bool filter)
{
    struct trial trial = {.filter = filter, .worked = false};
    pthread_t thread;
    uint32_t limits;
    int error;

    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("confining\n"); /* its buffer is there from now on */
    pthread_barrier_init(&trial.running, NULL, 2);
    pthread_barrier_init(&trial.filtered, NULL, 2);
    if (pthread_create(&thread, NULL, try_all, &trial) != 0)
        return 1;
    pthread_barrier_wait(&trial.running);
    limits = process_set_limits(2, THREADS);
    error = filter ? process_filter_system_calls() : -EPERM;
    printf("limits %s\nfilter %s\n", limits ? "set" : "refused", error ? strerrorname_np(-error) : "on");
    pthread_barrier_wait(&trial.filtered);
    pthread_join(thread, NULL);
    return trial.worked || error || !limits;
}
