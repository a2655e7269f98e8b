/*
 * proxy.c: a TUN <-> UDP proxy of the plainest kind, the yardstick that stands for flannel's udp backend.
 *
 * It works as flanneld's C proxy does, so that its speed and its packets are flanneld's: no vnet_hdr and no offload, one read
 * and one sendto for each packet, a linear list of routes of which the first match wins, the TTL lowered by one at encap and
 * again at decap, both descriptors tried in turn until neither has anything, then poll. The datagram's payload is the bare
 * inner packet. Two behaviours of flanneld are left out because they do not bear on speed: its ICMP answer to a packet without a route
 * (counted and dropped here) and its log line for each lost packet.
 *
 * It must not be improved: a faster proxy would be another yardstick.
 */
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct proxy {
    int tun;
    int udp;
    const struct fb_proxy_route *routes;
    uint32_t n_routes;
    size_t buffer_bytes;
    uint8_t *buffer;
    struct fb_proxy_counts *counts;
    int error; /* -errno of a device that is gone; 0 while all is well */
};

static const struct fb_proxy_route *find_route(const struct proxy *proxy, uint32_t destination_be) {
    for (uint32_t i = 0; i < proxy->n_routes; i++) {
        const struct fb_proxy_route *route = &proxy->routes[i];
        if ((destination_be & route->mask_be) == route->network_be)
            return route;
    }
    return NULL;
}

/* TTL one lower, header checksum patched by RFC 1624; false when the packet has run out. */
static bool lower_ttl(struct iphdr *header) {
    if (header->ttl <= 1)
        return false;
    header->ttl--;
    uint32_t sum = (uint32_t)ntohs(header->check) + 0x100u;
    header->check = htons((uint16_t)(sum + (sum >> 16)));
    return true;
}

/* A queue that is full, a peer that refuses or a device that is not up yet (EIO) is a lost packet; anything else ends the proxy. */
static bool is_loss(int error) {
    return error == ENOBUFS || error == ECONNREFUSED || error == EPERM || error == EMSGSIZE || error == EINVAL ||
           error == EHOSTUNREACH || error == ENETUNREACH || error == EIO;
}

static void refused(struct proxy *proxy, int error) {
    proxy->counts->refused++;
    if (!is_loss(error))
        proxy->error = -error;
}

static void send_packet(struct proxy *proxy, size_t bytes, const struct fb_proxy_route *route) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = route->port_be, .sin_addr = {route->hop_be}};
    ssize_t sent;
    do
        sent = sendto(proxy->udp, proxy->buffer, bytes, 0, (const struct sockaddr *)&to, sizeof to);
    while (sent < 0 && (errno == EAGAIN || errno == EINTR));
    if (sent < 0)
        refused(proxy, errno);
}

/* One packet from the TUN device to a peer; whether there was one. */
static bool tun_to_udp(struct proxy *proxy) {
    ssize_t bytes = read(proxy->tun, proxy->buffer, proxy->buffer_bytes);
    if (bytes < 0) {
        if (errno != EAGAIN && errno != EINTR)
            proxy->error = -errno;
        return false;
    }
    proxy->counts->tun_packets++;
    struct iphdr *header = (struct iphdr *)(void *)proxy->buffer; /* malloc aligns it */
    const struct fb_proxy_route *route =
        (size_t)bytes < sizeof *header || header->version != 4 ? NULL : find_route(proxy, header->daddr);
    if (route == NULL)
        proxy->counts->no_route++;
    else if (!lower_ttl(header))
        proxy->counts->expired++;
    else
        send_packet(proxy, (size_t)bytes, route);
    return true;
}

static void write_packet(struct proxy *proxy, size_t bytes) {
    ssize_t written;
    do
        written = write(proxy->tun, proxy->buffer, bytes);
    while (written < 0 && (errno == EAGAIN || errno == EINTR));
    if (written < 0)
        refused(proxy, errno);
}

/* One packet from a peer to the TUN device; whether there was one. */
static bool udp_to_tun(struct proxy *proxy) {
    ssize_t bytes = recv(proxy->udp, proxy->buffer, proxy->buffer_bytes, 0);
    if (bytes < 0) {
        if (errno != EAGAIN && errno != EINTR && !is_loss(errno))
            proxy->error = -errno;
        return false;
    }
    proxy->counts->udp_packets++;
    struct iphdr *header = (struct iphdr *)(void *)proxy->buffer;
    if ((size_t)bytes < sizeof *header)
        proxy->counts->refused++;
    else if (!lower_ttl(header))
        proxy->counts->expired++;
    else
        write_packet(proxy, (size_t)bytes);
    return true;
}

/* Both directions in turn while either has packets; bounded, so that `stop` is seen under a flood. */
static void bounce(struct proxy *proxy) {
    bool moved = true;
    for (uint32_t rounds = 0; moved && proxy->error == 0 && rounds < 100000u; rounds++) {
        moved = tun_to_udp(proxy);
        moved |= udp_to_tun(proxy);
    }
}

int fb_proxy(int tun, int udp, int stop, const struct fb_proxy_route *routes, uint32_t n_routes, uint32_t mtu_bytes,
             struct fb_proxy_counts *counts) {
    struct proxy proxy = {.tun = tun, .udp = udp, .routes = routes, .n_routes = n_routes, .buffer_bytes = mtu_bytes, .counts = counts};
    memset(counts, 0, sizeof *counts);
    proxy.buffer = malloc(mtu_bytes < sizeof(struct iphdr) ? sizeof(struct iphdr) : mtu_bytes);
    if (proxy.buffer == NULL)
        return -ENOMEM;
    struct pollfd waits[3] = {{.fd = tun, .events = POLLIN}, {.fd = udp, .events = POLLIN}, {.fd = stop, .events = POLLIN}};
    while (proxy.error == 0) {
        if (poll(waits, 3, -1) < 0 && errno != EINTR)
            proxy.error = -errno;
        if (waits[2].revents != 0)
            break;
        bounce(&proxy);
    }
    free(proxy.buffer);
    return proxy.error;
}
