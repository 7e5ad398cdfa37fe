package main

import (
	"strings"
	"testing"
)

const someMounts = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:50 / /mnt/my\040backups rw,nosuid shared:9 - fuse.chainfs /srv/nas rw,user_id=1000,group_id=0
41 22 0:51 / /mnt/ro ro,nosuid - fuse.chainfs /srv/a\134b ro,user_id=0
42 40 0:52 / /mnt/my\040backups/in rw - tmpfs none rw
43 22 0:50 /vm\0111 /bound rw - fuse.chainfs /srv/nas rw,user_id=1000
44 22 0:60 / /mnt/ro rw - tmpfs none rw
this is no line of it
`

func TestMounts(t *testing.T) {
	mounts, err := parseMounts(strings.NewReader(someMounts))
	if err != nil || len(mounts) != 6 {
		t.Fatalf("parseMounts: %d mounts, %v, want 6", len(mounts), err)
	}
	if m := mounts[1]; m.Point != "/mnt/my backups" || m.UID != 1000 || m.ReadOnly || m.Source != "/srv/nas" {
		t.Errorf("got %+v", m)
	}
	if m := mounts[2]; !m.ReadOnly || m.Source != `/srv/a\b` {
		t.Errorf("got %+v", m)
	}
	if m := mounts[4]; m.Root != "/vm\t1" {
		t.Errorf("got %+v", m)
	}
	tests := []struct {
		path, point string
	}{
		{"/mnt/my backups", "/mnt/my backups"},
		{"/mnt/my backups/vm", "/mnt/my backups"},
		{"/mnt/my backups2", ""},
		{"/mnt/my backups/in/x", ""}, // another file system, mounted in it
		{"/mnt/ro", ""},              // covered by a later mount
		{"/bound/x", "/bound"},
		{"/", ""},
	}
	for _, tt := range tests {
		m, ok := mountAt(mounts, tt.path)
		if ok != (tt.point != "") || ok && m.Point != tt.point {
			t.Errorf("mountAt(%s) = %q, %v, want %q", tt.path, m.Point, ok, tt.point)
		}
	}
	if root, ok := rootOf(mounts[4], mounts); !ok || root.Point != "/mnt/my backups" {
		t.Errorf("rootOf the bind mount = %q, %v", root.Point, ok)
	}
}

func TestMountOptions(t *testing.T) {
	tests := []struct {
		list string
		want mountOptions
		err  string
	}{
		{"defaults,_netdev,x-systemd.automount,noatime,user", mountOptions{}, ""},
		{"ro,allow_other", mountOptions{ReadOnly: true, AllowOther: true}, ""},
		{"ro,rw,foreground", mountOptions{Foreground: true}, ""},
		{"store=/a=b,log-file=/l,log-level=debug", mountOptions{Store: "/a=b", LogFile: "/l", LogLevel: "debug"}, ""},
		{"noexec,sync", mountOptions{Kernel: []string{"noexec", "sync"}}, ""},
		{"", mountOptions{}, ""},
		{"sparkling=1", mountOptions{}, `"sparkling=1" is unknown`},
		{"foreground=1", mountOptions{}, "takes no value"},
		{"store=", mountOptions{}, "needs a value"},
	}
	for _, tt := range tests {
		var got mountOptions
		err := got.parse(tt.list)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("-o %s: %v, want %s", tt.list, err, tt.err)
			}
			continue
		}
		if err != nil || !sameOptions(got, tt.want) {
			t.Errorf("-o %s: %+v, %v, want %+v", tt.list, got, err, tt.want)
		}
	}
}

func sameOptions(a, b mountOptions) bool {
	kernel := strings.Join(a.Kernel, ",") == strings.Join(b.Kernel, ",")
	a.Kernel, b.Kernel = nil, nil
	return kernel && a.ReadOnly == b.ReadOnly && a.AllowOther == b.AllowOther && a.Foreground == b.Foreground &&
		a.Store == b.Store && a.LogFile == b.LogFile && a.LogLevel == b.LogLevel
}

// TestOptionsAreSorted: each option has one meaning.
func TestOptionsAreSorted(t *testing.T) {
	for name := range ignoredOptions {
		if simpleOptions[name] != nil || kernelOptions[name] || valueOptions[name] != nil {
			t.Errorf("%s is ignored and is not", name)
		}
	}
}
