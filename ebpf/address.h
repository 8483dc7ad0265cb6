/* SPDX-License-Identifier: GPL-2.0-only */
/* Addresses, and the names of network devices: an index says nothing outside its network namespace. */
#define DEVICE_NAME 16
#define DEVICE_BUCKETS 256	/* NETDEV_HASHENTRIES */
#define DEVICE_CHAIN 16

KERNEL_STRUCT(sock_common, skc_bound_dev_if)
KERNEL_STRUCT(net, dev_index_head)
KERNEL_STRUCT(net_device, name, ifindex, index_hlist)

static __always_inline void read_device(char *to, struct net *net, u32 index)
{
	void **buckets = (void *)READ(net, dev_index_head), *node = NULL;
	struct net_device *device;

	bpf_probe_read_kernel(&node, sizeof(node), buckets + index % DEVICE_BUCKETS);
#pragma nounroll
	for (int i = 0; i < DEVICE_CHAIN; i++) {
		if (!node)
			return;
		device = node - __builtin_offsetof(struct net_device, index_hlist);
		if (READ(device, ifindex) == index) {
			bpf_probe_read_kernel(to, DEVICE_NAME, device->name);
			return;
		}
		bpf_probe_read_kernel(&node, sizeof(node), node);
	}
}

/* fe80::/10: such addresses mean something only beside a device, their zone. */
static __always_inline int is_link_local(const u8 *address)
{
	return address[0] == 0xfe && (address[1] & 0xc0) == 0x80;
}

/* ::ffff:a.b.c.d, which is IPv4 on the wire. */
static __always_inline int is_mapped(const void *address)
{
	const u32 *word = address;

	return !word[0] && !word[1] && word[2] == __builtin_bswap32(0xffff);
}

/* Copies one of two addresses; returns its IP version. Of a mapped one, `v4` is what it is mapped to. */
static __always_inline int set_address(u8 *to, u16 family, const void *v4, const void *v6)
{
	if (family == AF_INET6 && !is_mapped(v6)) {
		__builtin_memcpy(to, v6, 16);
		return 6;
	}
	__builtin_memcpy(to, v4, 4);
	return 4;
}

/* The beginning of sockaddr_in and sockaddr_in6; ports are in network order. */
struct asked { u16 family, port; u32 v4; u8 v6[16]; u32 zone; };

/* The address that a system call was given, in the program's memory; a mapped one becomes IPv4's. */
static __always_inline void read_asked(struct asked *asked, u64 address)
{
	bpf_probe_read_user(asked, 8, (void *)address);
	if (asked->family == AF_INET6)
		bpf_probe_read_user(asked->v6, 20, (void *)address + 8);
	if (asked->family == AF_INET6 && is_mapped(asked->v6)) {
		asked->family = AF_INET;
		asked->v4 = *(u32 *)(asked->v6 + 12);
	}
}
