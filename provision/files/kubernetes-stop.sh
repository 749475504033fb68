#!/bin/sh
# Run by systemd when a node's Kubernetes was stopped on purpose: pods outlive the service that started them, and a
# node that is to run another variant, or nothing, must have none left. After a crash they are left alone.
case "$SERVICE_RESULT" in success | timeout) ;; *) exit 0 ;; esac

# Containers' processes are found by their control groups, and containerd's helpers by their names.
for round in 1 2 3; do
  pids=$( { cat $(find /sys/fs/cgroup -path '*kubepods*' -name cgroup.procs 2>/dev/null) /dev/null; pgrep -f '^/.*containerd-shim'; } 2>/dev/null | sort -u)
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
