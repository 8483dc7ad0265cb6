/* SPDX-License-Identifier: GPL-2.0-only */
/* The names of network devices: an index says nothing outside its network namespace. */
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
