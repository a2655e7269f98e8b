/*
 * start.c: START, TABLE and HOLD. Whatever arrives is checked here before it is used: sizes of memory files by themselves, not by what the
 * message says of them, and seals, for a file that somebody could still cut short or change would kill us or lead the workers astray.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "process.h"

static bool has_seals(int fd, int wanted)
{
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & wanted) == wanted;
}

static off_t size_of(int fd)
{
    return lseek(fd, 0, SEEK_END);
}

static void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
}

static int map_pages(struct process *process, int fd, uint32_t n_pages)
{
    size_t bytes = n_pages * fp_page_bytes();
    void *pages;

    if (!has_seals(fd, F_SEAL_SHRINK) || size_of(fd) < (off_t)bytes)
        return -EINVAL;
    pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (pages == MAP_FAILED)
        return -errno;
    process->pages = pages;
    process->n_pages = n_pages;
    return 0;
}

static int start_workers(struct process *process, const struct fp_message_start *start, const int *fds)
{
    struct fp_queue queues[FP_PROTOCOL_QUEUES_MAX];
    uint32_t per_queue = start->settings.threads_per_queue == 2 ? 2 : 1;
    int error = map_pages(process, fds[fp_start_queue_fds(start)], start->n_queues * per_queue);

    if (error)
        return error;
    for (uint32_t i = 0; i < start->n_queues; i++) {
        queues[i] = (struct fp_queue){.tun_fd = *fds++, .n_lanes = start->n_lanes};
        for (uint32_t lane = 0; lane < start->n_lanes; lane++)
            queues[i].udp_fds[lane] = *fds++;
    }
    error = fp_datapath_start_in(queues, start->n_queues, &start->settings, process->pages, &process->datapath);
    if (error)
        munmap(process->pages, process->n_pages * fp_page_bytes());
    return error;
}

int process_start(struct process *process, const struct fp_message_start *start, const int *fds)
{
    uint32_t n_fds = fp_start_queue_fds(start);
    int error = process->datapath ? -EALREADY : start_workers(process, start, fds);

    if (error) {
        close_all(fds, (size_t)n_fds + 1);
        return error;
    }
    process->settings = start->settings;
    process->n_queues = start->n_queues;
    process->n_fds = n_fds;
    memcpy(process->fds, fds, n_fds * sizeof(*fds));
    process->pages_fd = fds[n_fds];
    memcpy(process->version, start->version, sizeof(process->version));
    process->confined |= process_set_limits(process->n_fds, process->n_pages);
    if (process_filter_system_calls() == 0)
        process->confined |= FP_CONFINED_SYSCALLS;
    return 0;
}

static int map_table(uint64_t bytes, int fd, void **mapped)
{
    if (!has_seals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) || size_of(fd) != (off_t)bytes)
        return -EINVAL;
    /* Private: until Linux 6.7 a shared mapping of a sealed file is refused even to those who only read. */
    *mapped = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    return *mapped == MAP_FAILED ? -errno : 0;
}

/* 0, or -errno with nothing changed. -ETIMEDOUT: a worker is stuck, the others forward by the new table. */
static int publish(struct process *process, uint64_t bytes, int fd)
{
    void *mapped;
    int error = map_table(bytes, fd, &mapped);

    if (error)
        return error;
    error = fp_datapath_publish_mapped(process->datapath, mapped, bytes);
    if (error == -EINVAL || error == -ENOMEM)
        munmap(mapped, bytes);
    return error;
}

static int check_table(uint64_t bytes, int fd)
{
    void *mapped;
    int error = map_table(bytes, fd, &mapped);

    if (error)
        return error;
    error = fp_table_check(mapped, bytes) == 0 ? 0 : -EINVAL;
    munmap(mapped, bytes);
    return error;
}

static void close_if_open(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void let_go(struct process *process)
{
    close_if_open(&process->held_fd);
    close_if_open(&process->other_fd);
}

int process_hold(struct process *process, const struct fp_message_table *table, int fd, int other_fd, int connection)
{
    int error = process->datapath ? check_table(table->bytes, fd) : -ENOTCONN;

    if (error) {
        close(fd);
        close_if_open(&other_fd);
        return error;
    }
    let_go(process);
    process->held_fd = fd;
    process->held_bytes = table->bytes;
    process->held_by = connection;
    process->other_fd = other_fd;
    return 0;
}

void process_hung_up(struct process *process, int connection)
{
    if (process->held_fd < 0 || process->held_by != connection)
        return;
    process->held_by = -1;
    if (process->other_fd < 0)
        process_other_ended(process);
}

int process_awaited_fd(const struct process *process)
{
    return process->held_fd >= 0 && process->held_by < 0 ? process->other_fd : -1;
}

void process_other_ended(struct process *process)
{
    const struct fp_message_table table = {.bytes = process->held_bytes};
    int fd = process->held_fd;

    process->held_fd = -1;
    let_go(process);
    process_table(process, &table, fd); /* it was checked when it came */
}

int process_table(struct process *process, const struct fp_message_table *table, int fd)
{
    int error = process->datapath ? publish(process, table->bytes, fd) : -ENOTCONN;

    if (error && error != -ETIMEDOUT) {
        close(fd);
        return error;
    }
    let_go(process);
    if (process->table_fd >= 0)
        close(process->table_fd);
    process->table_fd = fd;
    process->table_bytes = table->bytes;
    return error;
}
