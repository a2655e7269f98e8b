/*
 * naive.h: the plain version of what the C core does, as one would write it first; only to be compared with.
 *
 * Correct, and without any technique: bytes are summed one word at a time, routes are a list, each packet is copied and checked by
 * itself. Built with the same compiler options as the core.
 */
#ifndef FLANPY_BENCH_NAIVE_H
#define FLANPY_BENCH_NAIVE_H

#include "../flanpy.h"

struct fb_naive_list {
    const struct fp_route4 *routes;
    const struct fp_hop *hops;
    size_t n_routes;
};

uint32_t fb_naive_lookup(const struct fb_naive_list *list, uint32_t destination);
uint16_t fb_naive_sum(const void *data, size_t bytes);
uint16_t fb_naive_copy_sum(void *to, const void *from, size_t bytes);
/* One frame from the TUN device into finished packets at `out`, one behind the other. Bytes written, 0 when dropped. */
size_t fb_naive_encap(const struct fb_naive_list *list, uint8_t *frame, size_t bytes, uint8_t *out);
/* One datagram into a frame for the TUN device. Bytes written, 0 when dropped. */
size_t fb_naive_decap(const struct fb_naive_list *list, const struct fp_address *sender, uint8_t *packet, size_t bytes, uint8_t *out);
/* A train of TCP packets that follow each other into one merged frame. Bytes written, 0 when dropped. */
size_t fb_naive_merge(const struct fb_naive_list *list, const struct fp_address *sender, uint8_t *train, size_t bytes,
                      size_t segment_bytes, uint8_t *out);

#endif
