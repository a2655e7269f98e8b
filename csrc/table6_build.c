/*
 * table6_build.c: the IPv6 part of a table out of a sorted list of routes. No allocation, no recursion.
 *
 * As in table_build.c, sorted routes nest: a stack of at most 129 open routes turns them into ranges. A range is written when the next one
 * begins elsewhere, and joins the one before when they have one hop. Two passes: the first only counts.
 */
#include "table.h"

#include "heap_sort.h"

/* A range before it is known where it goes: its first address and the hop that the routes name. */
struct begun {
    struct fp_key6 first;
    uint32_t hop;
};

/* Ranges as they arrive; the latest is held back, for another may begin at the same address. */
struct sweep {
    const struct fp_table *table; /* NULL in the counting pass */
    struct fp_range6 *ranges;
    uint32_t count;
    struct begun held;
    struct begun last; /* the latest that was written */
    struct fp_key6 second; /* first address of the second range */
};

/* All bits of an address that a prefix of this length leaves free. */
static struct fp_key6 host_bits(uint32_t prefix_len)
{
    if (prefix_len >= 64)
        return (struct fp_key6){0, prefix_len == 128 ? 0 : UINT64_MAX >> (prefix_len - 64)};
    return (struct fp_key6){UINT64_MAX >> prefix_len, UINT64_MAX};
}

static bool is_last_address(struct fp_key6 key)
{
    return key.high == UINT64_MAX && key.low == UINT64_MAX;
}

static struct fp_key6 next_address(struct fp_key6 key)
{
    return (struct fp_key6){key.high + (key.low == UINT64_MAX), key.low + 1};
}

static void write_held(struct sweep *sweep)
{
    if (sweep->count > 0 && sweep->last.hop == sweep->held.hop)
        return;
    if (sweep->table != NULL)
        sweep->ranges[sweep->count] = (struct fp_range6){sweep->held.first, fp_table_leaf_of(sweep->table, sweep->held.hop)};
    if (sweep->count == 1)
        sweep->second = sweep->held.first;
    sweep->last = sweep->held;
    sweep->count++;
}

/* From this address on, this hop. Addresses never go down. */
static void begin_range(struct sweep *sweep, struct fp_key6 first, uint32_t hop)
{
    if (fp_key6_less(sweep->held.first, first))
        write_held(sweep);
    sweep->held = (struct begun){first, hop};
}

struct open_route {
    struct fp_key6 last;
    uint32_t hop;
};

static void sweep_routes(struct sweep *sweep, const struct fp_route6 *routes, size_t n_routes)
{
    struct open_route stack[130] = {{{UINT64_MAX, UINT64_MAX}, FP_HOP_NONE}};
    size_t top = 0;
    sweep->held = (struct begun){.hop = FP_HOP_NONE};
    for (size_t i = 0; i < n_routes; i++) {
        struct fp_key6 first = fp_key6_load(routes[i].prefix.bytes), free_bits = host_bits(routes[i].prefix_len);
        /* The routes are valid, so those that end before this one are closed, and all others contain it. */
        for (; fp_key6_less(stack[top].last, first); top--)
            begin_range(sweep, next_address(stack[top].last), stack[top - 1].hop);
        begin_range(sweep, first, routes[i].hop);
        stack[++top] = (struct open_route){{first.high | free_bits.high, first.low | free_bits.low}, routes[i].hop};
    }
    /* Beyond the last of all addresses nothing begins. */
    for (; !is_last_address(stack[top].last); top--)
        begin_range(sweep, next_address(stack[top].last), stack[top - 1].hop);
    write_held(sweep);
}

static uint32_t bits_of(struct fp_key6 number)
{
    uint32_t bits = 0;
    while (bits < 128 && fp_key6_shifted(number, bits) != 0)
        bits++;
    return bits;
}

void fp_draft6_count(struct fp_draft6 *draft, const struct fp_route6 *routes, size_t n_routes)
{
    struct sweep sweep;
    memset(draft, 0, sizeof *draft);
    if (n_routes == 0)
        return;
    memset(&sweep, 0, sizeof sweep);
    sweep_routes(&sweep, routes, n_routes);
    draft->ranges = sweep.count;
    draft->base = sweep.second;
    draft->last = sweep.last.first;
    /* About two slots for each range, so that most slots have one beginning at most. */
    uint32_t wanted_bits = 1;
    while (wanted_bits < 16 && (1u << wanted_bits) < 2 * sweep.count)
        wanted_bits++;
    struct fp_key6 span = fp_key6_minus(draft->last, draft->base);
    uint32_t bits = bits_of(span);
    draft->shift = bits > wanted_bits ? bits - wanted_bits : 0;
    draft->slots = (uint32_t)fp_key6_shifted(span, draft->shift) + 1;
}

static void write_slots(struct fp_table *table, const struct fp_draft6 *draft)
{
    const struct fp_range6 *ranges = fp_table_ranges6(table);
    uint32_t *slots = (uint32_t *)(void *)((uint8_t *)table + table->slots6_at);
    struct fp_key6 step = draft->shift >= 64 ? (struct fp_key6){1ull << (draft->shift - 64), 0} : (struct fp_key6){0, 1ull << draft->shift};
    struct fp_key6 first = draft->base;
    uint32_t range = 0;
    for (uint32_t slot = 0; slot < draft->slots; slot++) {
        while (range + 1 < draft->ranges && !fp_key6_less(first, ranges[range + 1].first))
            range++;
        slots[slot] = range;
        first = (struct fp_key6){first.high + step.high + (first.low + step.low < step.low), first.low + step.low};
    }
    slots[draft->slots] = draft->ranges - 1;
}

void fp_draft6_write(struct fp_table *table, const struct fp_draft6 *draft, const struct fp_route6 *routes, size_t n_routes)
{
    struct sweep sweep;
    table->ranges6 = draft->ranges;
    table->slots6 = draft->slots;
    table->shift6 = draft->shift;
    table->base6 = draft->base;
    if (n_routes == 0) {
        *(uint32_t *)(void *)((uint8_t *)table + table->slots6_at) = 0;
        return;
    }
    memset(&sweep, 0, sizeof sweep);
    sweep.table = table;
    sweep.ranges = (struct fp_range6 *)(void *)((uint8_t *)table + table->ranges6_at);
    sweep_routes(&sweep, routes, n_routes);
    write_slots(table, draft);
}

/* ------------------------------------------------------------------------------------------------------- valid and sorted */

static int compare(const struct fp_route6 *a, const struct fp_route6 *b)
{
    int compared = memcmp(&a->prefix, &b->prefix, sizeof a->prefix);
    return compared != 0 ? compared : (a->prefix_len > b->prefix_len) - (a->prefix_len < b->prefix_len);
}

bool fp_routes6_valid(const struct fp_route6 *routes, size_t n_routes, size_t n_hops)
{
    if (n_routes > FP_TABLE_ROUTES6_MAX)
        return false;
    for (size_t i = 0; i < n_routes; i++) {
        const struct fp_route6 *route = &routes[i];
        if (route->prefix_len > 128 || (route->hop >= n_hops && route->hop != FP_HOP_LOCAL))
            return false;
        struct fp_key6 prefix = fp_key6_load(route->prefix.bytes), free_bits = host_bits(route->prefix_len);
        if ((prefix.high & free_bits.high) != 0 || (prefix.low & free_bits.low) != 0)
            return false;
        if (i > 0 && compare(&routes[i - 1], route) >= 0)
            return false;
    }
    return true;
}

static bool listed_before(const void *a, const void *b, const void *unused)
{
    (void)unused;
    return compare(a, b) < 0;
}

void fp_routes6_sort(struct fp_route6 *routes, size_t n_routes)
{
    fp_heap_sort(routes, n_routes, sizeof *routes, listed_before, NULL);
}
