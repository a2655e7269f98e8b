/*
 * confine.c: what the process gives up, in the order in which it can: what needs privileges to be given up goes first.
 *
 * Each measure stands by itself: where one is not to be had (no other user in a user namespace that maps only root) the others are
 * taken all the same, and the agent says which is missing.
 */
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"

/* The bounding set, which exec could refill the others from; ends at the first capability that this kernel does not know. */
static void drop_bounding_set(void)
{
    for (unsigned long capability = 0; capability < 64; capability++) {
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno == EINVAL)
            return;
    }
}

static bool become(uid_t uid, gid_t gid)
{
    if (geteuid() != 0)
        return true; /* the agent has no privilege to give up */
    return syscall(SYS_setgroups, 0, NULL) == 0 && setresgid(gid, gid, gid) == 0 && setresuid(uid, uid, uid) == 0 && uid != 0;
}

static bool drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2];

    memset(none, 0, sizeof(none));
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return syscall(SYS_capset, &header, none) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

uint32_t process_drop_privileges(uid_t uid, gid_t gid)
{
    uint32_t done = 0;

    drop_bounding_set();
    if (become(uid, gid))
        done |= FP_CONFINED_USER;
    if (drop_capabilities())
        done |= FP_CONFINED_CAPABILITIES;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* nobody of the same user reads our memory or attaches */
    return done;
}

static bool limit(int resource, rlim_t value)
{
    struct rlimit both = {.rlim_cur = value, .rlim_max = value};

    return setrlimit((__rlimit_resource_t)resource, &both) == 0;
}

uint32_t process_set_limits(size_t n_queue_fds, size_t n_threads)
{
    size_t own = 5;                 /* 0, 1, 2, the listener, the counters' pages */
    size_t threads = 3 * n_threads; /* an eventfd, an epoll, a socket to ask for the path MTU */
    bool done = limit(RLIMIT_NOFILE, own + n_queue_fds + threads + PROCESS_CONNECTIONS_MAX + 1 + PROCESS_FDS_SPARE);

    done &= limit(RLIMIT_NPROC, 0);
    done &= limit(RLIMIT_CORE, 0);
    done &= limit(RLIMIT_FSIZE, 0);
    return done ? FP_CONFINED_LIMITS : 0;
}
