/*
 * Fuzz target: the route table. First byte 1 (modulo 4): IPv4 routes, built and compared with a naive look-up; 3: IPv6 routes. Even: a good
 * blob with some words changed; what the check accepts must be safe to look up in.
 *
 *   1:    | hops | routes: | prefix 4 | length | hop | ...                       even: | words: | place 4 | value 4 | ...
 *   3:    | hops | routes: | prefix 4, at 4 | prefix 4, at 12 | length | hop | ...
 */
#include "fuzz.h"
#include "table.h"

#include <errno.h>

enum { ROUTES_MAX = 64 };

#define ADDRESS_MASK ((uint32_t)(((uint64_t)FP_TABLE_ROOT << 16) - 1)) /* the fuzzer's tables know the lowest addresses alone */

static uint32_t naive(const struct fp_route4 *routes, size_t count, uint32_t address)
{
    uint32_t best = FP_HOP_NONE;
    uint32_t best_len = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t len = routes[i].prefix_len;
        bool inside = len == 0 || (routes[i].prefix >> (32 - len)) == (address >> (32 - len));
        if (inside && (best == FP_HOP_NONE || len >= best_len)) {
            best = routes[i].hop;
            best_len = len;
        }
    }
    return best;
}

/* Does a leaf say of its hop what the hop says itself? By the routes' own hops, not by those of the blob. */
static void compare_leaf(const struct fp_table *table, struct fp_leaf leaf, const struct fp_hop *hops, size_t n_hops)
{
    uint32_t number = fp_leaf_hop(leaf);
    for (size_t i = 0; i < n_hops; i++) {
        bool same = number < n_hops && memcmp(&hops[number].address, &hops[i].address, sizeof hops->address) == 0;
        FZ_CHECK(fp_leaf_is_at(table, leaf, &hops[i].address) == same);
    }
    FZ_CHECK(fp_leaf_is_no_hop(leaf) == (number >= n_hops));
    if (number < n_hops)
        FZ_CHECK(((leaf.value & FP_TABLE_TAKES_ECN) != 0) == ((hops[number].flags & FP_HOP_ECN) != 0));
}

/* IPv4 and other addresses, some of which end alike. */
static void make_hops(struct fp_hop *hops, size_t n_hops)
{
    memset(hops, 0, n_hops * sizeof *hops);
    for (size_t i = 0; i < n_hops; i++) {
        hops[i].address.bytes[15] = (uint8_t)(i / 2 * 37);
        if (i % 2 == 0)
            hops[i].address.bytes[10] = hops[i].address.bytes[11] = 0xff;
        hops[i].flags = i % 3 == 0 ? FP_HOP_ECN : 0;
    }
}

static void compare(const struct fp_table *table, const struct fp_route4 *routes, size_t count, const struct fp_hop *hops, size_t n_hops)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t end = routes[i].prefix + (uint32_t)((1ull << (32 - routes[i].prefix_len)) - 1);
        const uint32_t probes[] = {routes[i].prefix - 1, routes[i].prefix, end, end + 1, routes[i].prefix ^ 0x100};
        for (size_t j = 0; j < sizeof probes / sizeof *probes; j++) {
            FZ_CHECK(fp_table_lookup4(table, probes[j] & ADDRESS_MASK) == naive(routes, count, probes[j] & ADDRESS_MASK));
            compare_leaf(table, fp_table_leaf4(table, probes[j] & ADDRESS_MASK), hops, n_hops);
        }
    }
}

static void build(struct fz_input *input)
{
    struct fp_route4 routes[ROUTES_MAX];
    struct fp_hop hops[16];
    size_t n_hops = fz_u8(input) & 15;
    size_t count = 0;
    make_hops(hops, n_hops);
    while (input->left > 0 && count < ROUTES_MAX) {
        uint32_t prefix = fz_u32(input) & ADDRESS_MASK;
        uint8_t len = fz_u8(input);
        uint8_t hop = fz_u8(input);
        if (len < 32 && (len & 0x80) == 0)
            prefix &= ~(uint32_t)(0xffffffffull >> len);
        routes[count++] = (struct fp_route4){prefix, len & 0x7fu, hop == 0xff ? FP_HOP_LOCAL : hop};
    }
    fp_routes_sort(routes, count);
    const struct fp_routes all = {.v4 = routes, .n_v4 = count, .hops = hops, .n_hops = n_hops};
    size_t bytes = fp_table_bytes(&all);
    void *memory = fz_aligned(bytes > 0 ? bytes : 64);
    int error = fp_table_build(memory, bytes, 7, &all);
    FZ_CHECK((error == 0) == (bytes > 0));
    if (error == 0) {
        FZ_CHECK(fp_table_check(memory, bytes) == 0 && fp_table_generation(memory) == 7);
        compare(memory, routes, count, hops, n_hops);
    }
    free(memory);
}

static bool covers(const struct fp_route6 *route, const uint8_t *address)
{
    uint32_t whole = route->prefix_len / 8, rest = route->prefix_len % 8;
    if (memcmp(route->prefix.bytes, address, whole) != 0)
        return false;
    return rest == 0 || (route->prefix.bytes[whole] ^ address[whole]) >> (8 - rest) == 0;
}

static uint32_t naive6(const struct fp_route6 *routes, size_t count, const uint8_t *address)
{
    uint32_t best = FP_HOP_NONE;
    uint32_t best_len = 0;
    for (size_t i = 0; i < count; i++) {
        if (covers(&routes[i], address) && (best == FP_HOP_NONE || routes[i].prefix_len >= best_len)) {
            best = routes[i].hop;
            best_len = routes[i].prefix_len;
        }
    }
    return best;
}

/* One more or less than an address, as a number. */
static struct fp_address stepped(struct fp_address address, uint8_t step)
{
    for (size_t i = 16; i-- > 0;) {
        address.bytes[i] = (uint8_t)(address.bytes[i] + step);
        if (address.bytes[i] != (step == 1 ? 0 : 0xff))
            break;
    }
    return address;
}

static void compare6(const struct fp_table *table, const struct fp_route6 *routes, size_t count, const struct fp_hop *hops, size_t n_hops)
{
    for (size_t i = 0; i < count; i++) {
        struct fp_address end = routes[i].prefix;
        for (uint32_t bit = routes[i].prefix_len; bit < 128; bit++)
            end.bytes[bit / 8] = (uint8_t)(end.bytes[bit / 8] | 0x80 >> bit % 8);
        const struct fp_address probes[] = {routes[i].prefix, end, stepped(routes[i].prefix, 0xff), stepped(end, 1)};
        for (size_t j = 0; j < sizeof probes / sizeof *probes; j++) {
            FZ_CHECK(fp_table_lookup6(table, probes[j].bytes) == naive6(routes, count, probes[j].bytes));
            compare_leaf(table, fp_table_leaf6(table, probes[j].bytes), hops, n_hops);
        }
    }
}

/* Only eight bytes of a prefix are drawn, in two places, so that prefixes meet. */
static void build6(struct fz_input *input)
{
    struct fp_route6 routes[ROUTES_MAX];
    struct fp_hop hops[16];
    size_t n_hops = fz_u8(input) & 15;
    size_t count = 0;
    make_hops(hops, n_hops);
    while (input->left > 0 && count < ROUTES_MAX) {
        struct fp_route6 route = {.prefix = {{0xfd}}};
        fp_store32_be(route.prefix.bytes + 4, fz_u32(input));
        fp_store32_be(route.prefix.bytes + 12, fz_u32(input));
        route.prefix_len = fz_u8(input);
        uint8_t hop = fz_u8(input);
        route.hop = hop == 0xff ? FP_HOP_LOCAL : hop;
        for (uint32_t bit = route.prefix_len; bit < 128; bit++)
            route.prefix.bytes[bit / 8] = (uint8_t)(route.prefix.bytes[bit / 8] & ~(0x80 >> bit % 8));
        routes[count++] = route;
    }
    fp_routes6_sort(routes, count);
    const struct fp_routes all = {.v6 = routes, .n_v6 = count, .hops = hops, .n_hops = n_hops};
    size_t bytes = fp_table_bytes(&all);
    void *memory = fz_aligned(bytes > 0 ? bytes : 64);
    int error = fp_table_build(memory, bytes, 7, &all);
    FZ_CHECK((error == 0) == (bytes > 0));
    if (error == 0) {
        FZ_CHECK(fp_table_check(memory, bytes) == 0);
        compare6(memory, routes, count, hops, n_hops);
    }
    free(memory);
}

/* A good blob, built once: building is most of the work of an execution. Returns its size. */
static size_t good_blob(void **blob)
{
    static void *memory;
    static size_t bytes;
    struct fp_route4 routes[80];
    struct fp_hop hops[4];
    *blob = memory;
    if (memory != NULL)
        return bytes;
    make_hops(hops, 4);
    for (uint32_t i = 0; i < 40; i++)
        routes[i] = (struct fp_route4){(0x0a050000 & ADDRESS_MASK) + (i << 8), 24, i % 4};
    for (uint32_t i = 40; i < 80; i++)
        routes[i] = (struct fp_route4){(0x0a060000 & ADDRESS_MASK) + i * 2, 32, i % 3};
    struct fp_route6 routes6[40];
    for (uint32_t i = 0; i < 40; i++)
        routes6[i] = (struct fp_route6){{{0xfd, 0x05, [7] = (uint8_t)i}}, 64, i % 4};
    const struct fp_routes all = {.v4 = routes, .n_v4 = 80, .v6 = routes6, .n_v6 = 40, .hops = hops, .n_hops = 4};
    bytes = fp_table_bytes(&all);
    *blob = fz_lasting(&memory, bytes);
    FZ_CHECK(fp_table_build(memory, bytes, 1, &all) == 0);
    return bytes;
}

/* Whatever a blob that passes the check says, a leaf speaks for the hop that it names. */
static void check_found(const struct fp_table *table, struct fp_leaf leaf)
{
    uint32_t number = fp_leaf_hop(leaf);
    const struct fp_hop *hop = fp_table_hop(table, number);
    FZ_CHECK(number == FP_HOP_NONE || number == FP_HOP_LOCAL || hop != NULL);
    if (hop != NULL)
        FZ_CHECK(fp_leaf_is_at(table, leaf, &hop->address) && ((leaf.value & FP_TABLE_TAKES_ECN) != 0) == ((hop->flags & FP_HOP_ECN) != 0));
}

static void damage(struct fz_input *input)
{
    void *blob;
    size_t bytes = good_blob(&blob);
    uint8_t *memory = fz_aligned(bytes);
    memcpy(memory, blob, bytes);
    while (input->left > 0) {
        uint32_t place = fz_u32(input) % (uint32_t)(bytes / 4);
        fp_store32(memory + 4 * (size_t)place, fz_u32(input));
    }
    if (fp_table_check(memory, bytes) == 0) {
        const struct fp_table *table = (const struct fp_table *)(const void *)memory;
        for (uint32_t address = 0x0a04ff00; address < 0x0a060200; address += 61) {
            check_found(table, fp_table_leaf4(table, address & ADDRESS_MASK));
        }
        struct fp_address address = {{0}};
        fp_table_knows_address(table, &address);
        for (uint32_t i = 0; i < 256 * 16; i++) {
            address = (struct fp_address){{i & 0x100 ? 0xff : 0xfd, 0x05, [7] = (uint8_t)i, [9] = (uint8_t)(i >> 8)}};
            check_found(table, fp_table_leaf6(table, address.bytes));
        }
    }
    free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fz_input input = {data, bytes};
    uint8_t mode = fz_u8(&input);
    if ((mode & 1) == 0)
        damage(&input);
    else if (mode & 2)
        build6(&input);
    else
        build(&input);
    return 0;
}
