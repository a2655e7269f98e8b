/*
 * worker_answer.c: the ICMP errors of a worker: built by icmp.c, limited in rate here (those
 * that tell of a path MTU by themselves), written to the TUN device as packets that came
 * in through it. The kernel routes them like any other: to a process or pod of this node, or back into the tunnel to a peer's.
 */
#include <time.h>
#include <unistd.h>

#include "worker_state.h"

void fp_bucket_fill(struct fp_bucket *bucket)
{
    *bucket = (struct fp_bucket){.filled_ns = fp_clock_ns(CLOCK_MONOTONIC_COARSE), .credit_ns = FP_NS_PER_S};
}

static bool take_token(struct fp_bucket *bucket, uint32_t per_second)
{
    uint64_t now = fp_clock_ns(CLOCK_MONOTONIC_COARSE);
    uint64_t cost;

    if (!per_second)
        return false;
    cost = FP_NS_PER_S / per_second;
    bucket->credit_ns += now - bucket->filled_ns;
    if (bucket->credit_ns > FP_NS_PER_S)
        bucket->credit_ns = FP_NS_PER_S;
    bucket->filled_ns = now;
    if (bucket->credit_ns < cost)
        return false;
    bucket->credit_ns -= cost;
    return true;
}

void fp_worker_answer(struct fp_worker *worker, enum fp_verdict verdict, const uint8_t *packet, size_t bytes, uint32_t mtu_bytes)
{
    uint8_t reply[FP_VNET_HDR_BYTES + FP_ICMP_BYTES_MAX] = {0}; /* an all-zero vnet_hdr: no offload, checksums are done */
    struct fp_bucket *bucket = verdict == FP_DROP_TOO_BIG ? &worker->too_big_bucket : &worker->bucket;
    size_t length;

    if (verdict != FP_DROP_NO_ROUTE && verdict != FP_DROP_TTL && verdict != FP_DROP_TOO_BIG)
        return;
    length = fp_icmp_error(&worker->context, verdict, packet, bytes, mtu_bytes, reply + FP_VNET_HDR_BYTES, FP_ICMP_BYTES_MAX);
    if (!length || !take_token(bucket, worker->settings.icmp_per_second)) {
        fp_worker_verdict(worker, FP_ICMP_LIMITED, 1, bytes);
        return;
    }
    if (write(worker->queue.tun_fd, reply, FP_VNET_HDR_BYTES + length) >= 0)
        fp_worker_verdict(worker, FP_ICMP_SENT, 1, length);
    else
        fp_worker_verdict(worker, FP_DROP_WRITE, 1, length);
}
