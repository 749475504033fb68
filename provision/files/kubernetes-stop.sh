#!/bin/sh
# Run after a node's Kubernetes was stopped on purpose: pods outlive the service that started them, and a node that is
# to run another variant, or nothing, must have none left. A crash does not get here, and leaves them alone.

# Containers' processes are found by their control groups, and containerd's helpers by its socket: other programs on
# the node, such as Docker, have helpers of the same name. Where a group has processes of another namespace, the kernel
# shows them as 0, which for kill would be the script itself.
helpers='^[^ ]*containerd-shim.* -address /run/k3s/containerd/containerd\.sock( |$)'
groups='/sys/fs/cgroup/kubepods* /sys/fs/cgroup/*/kubepods*'
for round in 1 2 3; do
  pids=$( { cat $(find $groups -name cgroup.procs 2>/dev/null) /dev/null; pgrep -f "$helpers"; } 2>/dev/null | grep -E '^[1-9]' | sort -u)
  [ -n "$pids" ] || break
  kill -KILL $pids 2>/dev/null
  sleep 0.2
done
for place in /run/k3s /var/lib/kubelet/pods /run/netns/cni-; do
  awk -v place="$place" 'index($2, place) == 1 { print $2 }' /proc/self/mounts | sort -r | xargs -r -n 1 umount -l
done
find /run/netns -maxdepth 1 -name 'cni-*' -delete 2>/dev/null
for interface in cni0 flannel.1 flannel-v6.1 kube-ipvs0; do ip link delete "$interface" 2>/dev/null; done
ip -o link show type veth 2>/dev/null | awk -F': ' '{ print $2 }' | cut -d@ -f1 | grep -E '^(veth[0-9a-f]{8}|cali)' | xargs -r -n 1 ip link delete
rm -rf /var/lib/cni
for tables in iptables ip6tables; do
  if command -v "$tables-save" >/dev/null; then
    "$tables-save" | grep -v -e KUBE- -e CNI- -e FLANNEL -e flannel -e cali | "$tables-restore"
  fi
done
exit 0
