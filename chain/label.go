package chain

import (
	"regexp"
	"strings"
)

// Label is what an image's path says about the backup it belongs to.
type Label struct {
	VM     string // the virtual machine's name, empty when the path has none
	Backup string // the backup's name, a time stamp in CloudStack's layout
	Disk   string // "root", "datadisk", or the file's name without its ending
	Volume string // CloudStack's volume id, empty in other layouts
}

// cloudStackName matches the names CloudStack's NAS provider gives to disks:
// root.VOLUME.qcow2 and datadisk.VOLUME.qcow2.
var cloudStackName = regexp.MustCompile(`^(root|datadisk)\.(.+)\.qcow2$`)

// LabelOf reads the label from a path. CloudStack's layout is VM/TIMESTAMP/DISK;
// in any other the last directory is the backup and the one above it the VM,
// and in a flat tree both are empty.
func LabelOf(p Path) Label {
	var l Label
	parts := strings.Split(string(p), "/")
	name := parts[len(parts)-1]
	switch n := len(parts); {
	case n >= 3:
		l.VM, l.Backup = parts[n-3], parts[n-2]
	case n == 2:
		l.VM = parts[0]
	}
	if m := cloudStackName.FindStringSubmatch(name); m != nil {
		l.Disk, l.Volume = m[1], m[2]
		return l
	}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		name = name[:i]
	}
	l.Disk = name
	return l
}
