/*
 * filter.c: the seccomp filter of the process, a classic BPF program that looks at the number of each system call (seccomp(2)).
 *
 * Put on when all threads run and before the first packet is read, so that starting threads, opening sockets and whatever the C library
 * does at its first breath are not in the list. What is not in it fails with EPERM and nothing else happens: a slip of ours costs a
 * function and not the datapath. Another architecture's calls (the numbers mean other things there) end the process.
 *
 *   workers        read write writev recvmsg sendmsg sendmmsg poll ppoll epoll_wait sched_yield futex clock_gettime connect getsockopt
 *                  (connect and getsockopt: the UDP socket that is asked for path MTUs; there is no other socket to connect)
 *   main thread    accept4 recvmsg sendmsg getsockopt close lseek fcntl (F_GET_SEALS alone) mmap (never executable) munmap
 *   C library      brk madvise rt_sigprocmask rt_sigreturn restart_syscall exit exit_group
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#define ARCHITECTURE 0 /* no list for this machine: process_filter_system_calls says so */
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n) + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0))
#define LOAD_ARGUMENT(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)ARGUMENT(n)) /* its lower 32 bits */
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define DENIED (SECCOMP_RET_ERRNO | EPERM)
#define ALLOW(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), RETURN(SECCOMP_RET_ALLOW)

static const struct sock_filter filter[] = {
    LOAD(arch),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
    RETURN(SECCOMP_RET_KILL_PROCESS),
    LOAD(nr),
    ALLOW(read),
    ALLOW(write),
    ALLOW(writev),
    ALLOW(recvmsg),
    ALLOW(sendmsg),
    ALLOW(sendmmsg),
#ifdef SYS_poll
    ALLOW(poll),
#endif
    ALLOW(ppoll),
#ifdef SYS_epoll_wait
    ALLOW(epoll_wait),
#endif
    ALLOW(epoll_pwait),
    ALLOW(sched_yield),
    ALLOW(futex),
    ALLOW(clock_gettime),
    ALLOW(connect),
    ALLOW(getsockopt),
    ALLOW(accept4),
    ALLOW(close),
    ALLOW(lseek),
    ALLOW(munmap),
    ALLOW(brk),
    ALLOW(madvise),
    ALLOW(rt_sigprocmask),
    ALLOW(rt_sigreturn),
    ALLOW(restart_syscall),
    ALLOW(exit),
    ALLOW(exit_group),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 4),
    LOAD_ARGUMENT(2), /* protection: anything but execution */
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),
    RETURN(DENIED),
    RETURN(SECCOMP_RET_ALLOW),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 3),
    LOAD_ARGUMENT(1),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_GET_SEALS, 0, 1),
    RETURN(SECCOMP_RET_ALLOW),
    RETURN(DENIED),
};

int process_filter_system_calls(void)
{
    const struct sock_fprog program = {.len = sizeof(filter) / sizeof(*filter), .filter = (struct sock_filter *)(uintptr_t)filter};
    long error;

    if (ARCHITECTURE == 0)
        return -ENOSYS;
    error = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (error > 0) /* the id of a thread that has another filter: cannot be, for nobody else puts one on */
        return -ESRCH;
    return error < 0 ? -errno : 0;
}
