/*
 * Fuzz target: histories of a cluster. Routes of both families and hops come, change and go; every table on the way is compared with a
 * naive model, and what it knows must not depend on how it came to be.
 *
 *   | step: kind, modulo 8 | operands | ...
 *
 *   0, 1  put an IPv4 route    | prefix 4 | length | hop |        2, 3  put an IPv6 route   | prefix 4, at 4 | 4, at 12 | length | hop |
 *   4     drop an IPv4 route   | which |                          5     drop an IPv6 route  | which |
 *   6     give a hop another address | which | address | port 2 | 7     build and compare
 */
#include "fuzz.h"
#include "table.h"

enum { ROUTES_MAX = 16, HOPS = 5, TABLES_MAX = 3 };

#define ADDRESS_MASK ((uint32_t)(((uint64_t)FP_TABLE_ROOT << 16) - 1)) /* the fuzzer's tables know the lowest addresses alone */

struct cluster {
    struct fp_route4 v4[ROUTES_MAX];
    struct fp_route6 v6[ROUTES_MAX];
    struct fp_hop hops[HOPS];
    size_t n_v4, n_v6;
    uint32_t tables;
};

static uint32_t draw_hop(struct fz_input *input)
{
    uint8_t drawn = fz_u8(input);
    return drawn == 0xff ? FP_HOP_LOCAL : drawn % HOPS;
}

static void put4(struct cluster *cluster, struct fz_input *input)
{
    uint32_t prefix = fz_u32(input) & ADDRESS_MASK;
    uint32_t len = fz_u8(input) % 33u;
    size_t at = 0;
    prefix &= ~(uint32_t)(0xffffffffull >> len);
    while (at < cluster->n_v4 && (cluster->v4[at].prefix != prefix || cluster->v4[at].prefix_len != len))
        at++;
    if (at == ROUTES_MAX)
        return;
    cluster->v4[at] = (struct fp_route4){prefix, len, draw_hop(input)};
    cluster->n_v4 += at == cluster->n_v4;
}

/* Every bit behind the prefix. */
static void fill_host(struct fp_address *address, uint32_t prefix_len, uint8_t with)
{
    uint8_t first = (uint8_t)(0xff >> prefix_len % 8);
    uint32_t whole = prefix_len / 8;
    if (whole == 16)
        return;
    address->bytes[whole] = (uint8_t)((address->bytes[whole] & ~first) | (with & first));
    memset(address->bytes + whole + 1, with, 15 - whole);
}

static void put6(struct cluster *cluster, struct fz_input *input)
{
    struct fp_route6 route = {.prefix = {{0xfd}}};
    size_t at = 0;
    fp_store32_be(route.prefix.bytes + 4, fz_u32(input));
    fp_store32_be(route.prefix.bytes + 12, fz_u32(input));
    route.prefix_len = fz_u8(input) % 129u;
    fill_host(&route.prefix, route.prefix_len, 0);
    while (at < cluster->n_v6 && (memcmp(&cluster->v6[at].prefix, &route.prefix, sizeof route.prefix) != 0 ||
                                  cluster->v6[at].prefix_len != route.prefix_len))
        at++;
    if (at == ROUTES_MAX)
        return;
    route.hop = draw_hop(input);
    cluster->v6[at] = route;
    cluster->n_v6 += at == cluster->n_v6;
}

static void move_hop(struct cluster *cluster, struct fz_input *input)
{
    struct fp_hop *hop = &cluster->hops[fz_u8(input) % HOPS];
    hop->address.bytes[15] = fz_u8(input); /* two hops may have one address, on different ports */
    hop->port = fz_u16(input);
}

/* ------------------------------------------------------------------------------------------------------- the naive model */

static uint32_t naive4(const struct cluster *cluster, uint32_t address)
{
    uint32_t best = FP_HOP_NONE;
    int best_len = -1;
    for (size_t i = 0; i < cluster->n_v4; i++) {
        const struct fp_route4 *route = &cluster->v4[i];
        uint32_t mask = ~(uint32_t)(0xffffffffull >> route->prefix_len);
        if ((address & mask) == route->prefix && (int)route->prefix_len > best_len) {
            best = route->hop;
            best_len = (int)route->prefix_len;
        }
    }
    return best;
}

static uint32_t naive6(const struct cluster *cluster, const struct fp_address *address)
{
    uint32_t best = FP_HOP_NONE;
    int best_len = -1;
    for (size_t i = 0; i < cluster->n_v6; i++) {
        const struct fp_route6 *route = &cluster->v6[i];
        uint32_t whole = route->prefix_len / 8, rest = route->prefix_len % 8;
        if ((int)route->prefix_len <= best_len || memcmp(route->prefix.bytes, address->bytes, whole) != 0)
            continue;
        if (rest == 0 || (route->prefix.bytes[whole] ^ address->bytes[whole]) >> (8 - rest) == 0) {
            best = route->hop;
            best_len = (int)route->prefix_len;
        }
    }
    return best;
}

static bool naive_knows(const struct cluster *cluster, const struct fp_address *address)
{
    for (size_t i = 0; i < HOPS; i++) {
        if (memcmp(&cluster->hops[i].address, address, sizeof *address) == 0)
            return true;
    }
    return false;
}

/* --------------------------------------------------------------------------------------------------------------- comparing */

static void compare4(const struct fp_table *table, const struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->n_v4; i++) {
        uint32_t first = cluster->v4[i].prefix;
        uint32_t last = first | (uint32_t)(0xffffffffull >> cluster->v4[i].prefix_len);
        const uint32_t probes[] = {first - 1, first, last, last + 1, first ^ 0x10000, first ^ 0x100, first ^ 1};
        for (size_t j = 0; j < sizeof probes / sizeof *probes; j++)
            FZ_CHECK(fp_table_lookup4(table, probes[j] & ADDRESS_MASK) == naive4(cluster, probes[j] & ADDRESS_MASK));
    }
}

static void compare6(const struct fp_table *table, const struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->n_v6; i++) {
        struct fp_address probe = cluster->v6[i].prefix;
        FZ_CHECK(fp_table_lookup6(table, probe.bytes) == naive6(cluster, &probe));
        fill_host(&probe, cluster->v6[i].prefix_len, 0xff);
        FZ_CHECK(fp_table_lookup6(table, probe.bytes) == naive6(cluster, &probe));
        for (size_t byte = 16; byte-- > 0 && ++probe.bytes[byte] == 0;) /* one more, as a number */
            continue;
        FZ_CHECK(fp_table_lookup6(table, probe.bytes) == naive6(cluster, &probe));
    }
}

static void compare_hops(const struct fp_table *table, const struct cluster *cluster)
{
    for (uint32_t i = 0; i < HOPS; i++) {
        const struct fp_hop *hop = fp_table_hop(table, i);
        FZ_CHECK(hop != NULL && memcmp(hop, &cluster->hops[i], sizeof *hop) == 0);
        struct fp_address other = hop->address;
        other.bytes[15] ^= 1;
        FZ_CHECK(fp_table_knows_address(table, &hop->address));
        FZ_CHECK(fp_table_knows_address(table, &other) == naive_knows(cluster, &other));
    }
    FZ_CHECK(fp_table_hop(table, HOPS) == NULL);
}

/* A table of copies of the routes in whatever memory there is: what lay in it before must not show. */
static void *build(const struct cluster *cluster, int dirt, size_t *bytes)
{
    struct cluster copy = *cluster;
    const struct fp_routes all = {.v4 = copy.v4, .n_v4 = copy.n_v4, .v6 = copy.v6, .n_v6 = copy.n_v6, .hops = copy.hops, .n_hops = HOPS};
    if (dirt != 0) { /* another order of events */
        for (size_t i = 0; i < copy.n_v4; i++)
            copy.v4[i] = cluster->v4[copy.n_v4 - 1 - i];
        for (size_t i = 0; i < copy.n_v6; i++)
            copy.v6[i] = cluster->v6[copy.n_v6 - 1 - i];
    }
    fp_routes_sort(copy.v4, copy.n_v4);
    fp_routes6_sort(copy.v6, copy.n_v6);
    *bytes = fp_table_bytes(&all);
    FZ_CHECK(*bytes > 0);
    void *memory = fz_aligned(*bytes);
    memset(memory, dirt, *bytes);
    FZ_CHECK(fp_table_build(memory, *bytes, cluster->tables, &all) == 0);
    return memory;
}

static void publish(struct cluster *cluster)
{
    size_t bytes, again_bytes;
    if (cluster->tables++ == TABLES_MAX)
        return;
    void *table = build(cluster, 0, &bytes);
    void *again = build(cluster, 0xa5, &again_bytes);
    FZ_CHECK(bytes == again_bytes && memcmp(table, again, bytes) == 0);
    free(again);
    FZ_CHECK(fp_table_check(table, bytes) == 0 && fp_table_size(table) == bytes && fp_table_generation(table) == cluster->tables);
    compare4(table, cluster);
    compare6(table, cluster);
    compare_hops(table, cluster);
    free(table);
}

static void step(struct cluster *cluster, struct fz_input *input)
{
    uint8_t kind = fz_u8(input) & 7;
    if (kind < 2)
        put4(cluster, input);
    else if (kind < 4)
        put6(cluster, input);
    else if (kind == 4 && cluster->n_v4 > 0)
        cluster->v4[fz_u8(input) % cluster->n_v4] = cluster->v4[--cluster->n_v4];
    else if (kind == 5 && cluster->n_v6 > 0)
        cluster->v6[fz_u8(input) % cluster->n_v6] = cluster->v6[--cluster->n_v6];
    else if (kind == 6)
        move_hop(cluster, input);
    else if (kind == 7)
        publish(cluster);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fz_input input = {data, bytes};
    struct cluster cluster;
    memset(&cluster, 0, sizeof cluster);
    while (input.left > 0 && cluster.tables < TABLES_MAX)
        step(&cluster, &input);
    publish(&cluster);
    return 0;
}
