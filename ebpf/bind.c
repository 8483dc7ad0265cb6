/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Binds of IP sockets, as the system call left them: what the socket has if it succeeded, what was
 * asked for if it failed.
 */
#include "ig.h"
#include "recursion.h"
#include "address.h"

OPTION(FAILURE_ONLY, 0)	/* only binds that failed */
OPTION(FILTER_PORTS, ANY)	/* a list of ports, those that were chosen for port 0 too */

#define SOCK_RAW 3
/* Bits of inet_flags, which took the bit-fields' place in 6.6: 159987ef7260 */
#define INET_FLAGS_FREEBIND 11
#define INET_FLAGS_TRANSPARENT 15
#define INET_FLAGS_BIND_ADDRESS_NO_PORT 18

KERNEL_STRUCT(sock_common, skc_reuse, skc_reuseport)
KERNEL_STRUCT(sock, sk_type)
KERNEL_STRUCT(inet_sock, inet_flags, freebind, transparent, bind_address_no_port)

#ifdef HAVE_inet_sock_inet_flags
#define INET_BIT(inet, flag, field) (READ(inet, inet_flags) >> flag & 1)
#else
#define INET_BIT(inet, flag, field) BITS(inet, BIT_OFFSET_inet_sock_##field, 1)
#endif

enum option { REUSE_PORT = 1, REUSE_ADDRESS = 2, NO_PORT = 4, TRANSPARENT = 8, FREEBIND = 16 };

struct event {
	u64 timestamp;
	struct owner owner;
	u32 netns, error;
	u32 version, opts;	/* opts: enum option */
	u8 addr[16];
	u32 bound_dev_if;
	u16 proto, port;	/* host order */
	char device[DEVICE_NAME], zone[DEVICE_NAME]; /* zone: of a link-local address */
};

static __always_inline u32 options_of(struct sock *sk)
{
	struct inet_sock *inet = (void *)sk;
	u32 opts = 0;

	if (BITS(sk, BIT_OFFSET_sock_common_skc_reuseport, 1))
		opts |= REUSE_PORT;
	if (BITS(sk, BIT_OFFSET_sock_common_skc_reuse, 4))
		opts |= REUSE_ADDRESS;
	if (INET_BIT(inet, INET_FLAGS_BIND_ADDRESS_NO_PORT, bind_address_no_port))
		opts |= NO_PORT;
	if (INET_BIT(inet, INET_FLAGS_TRANSPARENT, transparent))
		opts |= TRANSPARENT;
	if (INET_BIT(inet, INET_FLAGS_FREEBIND, freebind))
		opts |= FREEBIND;
	return opts;
}

static __always_inline void read_bound(struct event *event, struct sock *sk, struct sock_common *common)
{
	event->version = set_address(event->addr, common->skc_family, &common->skc_rcv_saddr, &common->skc_v6_rcv_saddr);
	/* a raw socket keeps its protocol where others have the port: inet_create() */
	if (READ(sk, sk_type) != SOCK_RAW)
		event->port = NTOHS(READ((struct inet_sock *)sk, inet_sport));
}

/* Returns the zone's index. */
static __always_inline u32 read_requested(struct event *event, u64 address, u16 family)
{
	struct asked asked = {};

	read_asked(&asked, address);
	event->version = set_address(event->addr, asked.family ? asked.family : family, &asked.v4, asked.v6);
	event->port = NTOHS(asked.port);
	return asked.zone;
}

static __always_inline int port_wanted(u16 port)
{
	const s32 ports[] = { FILTER_PORTS };

	if (ports[0] == ANY)
		return 1;
#pragma unroll
	for (int i = 0; i < sizeof(ports) / sizeof(*ports); i++)
		if (port == ports[i])
			return 1;
	return 0;
}

static __always_inline int left_bind(s64 ret)
{
	u32 error = ret < 0 ? -ret : 0;
	struct event event = { .error = error };
	struct sock_common common;
	struct socket socket;
	struct call call;
	u32 zone = 0;
	u64 cgroup;

	if (FAILURE_ONLY && !error)
		return 0;
	call = current_call();
	if (!current_socket(call.fd, &socket))
		return 0;
	bpf_probe_read_kernel(&common, sizeof(common), &socket.sk->__sk_common);
	if ((common.skc_family != AF_INET && common.skc_family != AF_INET6) || !current_wanted(&cgroup))
		return 0;
	if (error)
		zone = read_requested(&event, call.address, common.skc_family);
	else
		read_bound(&event, socket.sk, &common);
	if (!port_wanted(event.port))
		return 0;
	event.timestamp = bpf_ktime_get_ns();
	read_owner(&event.owner, cgroup);
	event.netns = READ(common.skc_net.net, ns.inum);
	event.proto = READ(socket.sk, sk_protocol);
	event.opts = options_of(socket.sk);
	event.bound_dev_if = common.skc_bound_dev_if;
	if (event.bound_dev_if)
		read_device(event.device, common.skc_net.net, event.bound_dev_if);
	if (event.version == 6 && is_link_local(event.addr))
		read_device(event.zone, common.skc_net.net, zone ? zone : event.bound_dev_if);
	if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING);
	return 0;
}

static __always_inline int left_call(s32 number, s64 ret)
{
	return number == NR_BIND ? left_bind(ret) : 0;
}

CALL_END(bind, 1, left_bind)
ALL_CALLS_END(1, left_call)
