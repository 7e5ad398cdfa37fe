package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu"
)

// mountOptions are the options of a mount, from flags and from -o.
type mountOptions struct {
	ReadOnly   bool
	AllowOther bool
	Foreground bool
	Debug      bool
	Store      string
	LogFile    string
	LogLevel   string
	Verify     qemu.Verify
	LimitRate  int64 // bytes a second; 0 for no limit
	Deferral   chain.Deferral
	Kernel     []string
}

// simpleOptions are the options of mount(8) without a value.
var simpleOptions = map[string]func(*mountOptions){
	"ro":            func(o *mountOptions) { o.ReadOnly = true },
	"rw":            func(o *mountOptions) { o.ReadOnly = false },
	"allow_other":   func(o *mountOptions) { o.AllowOther = true },
	"noallow_other": func(o *mountOptions) { o.AllowOther = false },
	"foreground":    func(o *mountOptions) { o.Foreground = true },
	"debug":         func(o *mountOptions) { o.Debug = true },
}

// valueOptions are our long options as key=value.
var valueOptions = map[string]func(*mountOptions, string) error{
	"store":      func(o *mountOptions, v string) error { o.Store = v; return nil },
	"log-file":   func(o *mountOptions, v string) error { o.LogFile = v; return nil },
	"log-level":  func(o *mountOptions, v string) error { o.LogLevel = v; return nil },
	"verify":     func(o *mountOptions, v string) (err error) { o.Verify, err = parseVerify(v); return err },
	"limit-rate": func(o *mountOptions, v string) (err error) { o.LimitRate, err = parseRate(v); return err },

	"inline-limit": func(o *mountOptions, v string) (err error) {
		o.Deferral.InlineLimit, err = parseInlineLimit(v)
		return err
	},
	"settle": func(o *mountOptions, v string) (err error) {
		o.Deferral.Settle, err = parseDuration("settle", v)
		return err
	},
	"keep": func(o *mountOptions, v string) (err error) {
		o.Deferral.Keep, err = parseDuration("keep", v)
		return err
	},
	"workers": func(o *mountOptions, v string) (err error) { o.Deferral.Workers, err = parseWorkers(v); return err },
}

// kernelOptions are handed to the kernel.
var kernelOptions = words("nodev dev nosuid suid noexec exec sync dirsync")

// ignoredOptions have no meaning here, or always apply. Times are kept by the
// tree's own file system.
var ignoredOptions = words("defaults default_permissions auto noauto user nouser users owner group nofail async " +
	"atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime iversion noiversion mand nomand _netdev silent loud nonempty")

func words(list string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(list) {
		set[w] = true
	}
	return set
}

// parse takes the options of one -o.
func (o *mountOptions) parse(list string) error {
	for _, option := range strings.Split(list, ",") {
		if err := o.one(strings.TrimSpace(option)); err != nil {
			return err
		}
	}
	return nil
}

func (o *mountOptions) one(option string) error {
	key, value, hasValue := strings.Cut(option, "=")
	switch {
	case option == "", ignoredOptions[option],
		strings.HasPrefix(key, "x-"), strings.HasPrefix(key, "X-"), key == "comment":
	case simpleOptions[option] != nil:
		simpleOptions[option](o)
	case kernelOptions[option]:
		o.Kernel = append(o.Kernel, option)
	case valueOptions[key] != nil && value != "":
		return valueOptions[key](o, value)
	case valueOptions[key] != nil:
		return fmt.Errorf("mount option %s needs a value: %s=VALUE", key, key)
	case hasValue && simpleOptions[key] != nil:
		return fmt.Errorf("mount option %s takes no value", key)
	default:
		return fmt.Errorf("mount option %q is unknown; chainfs mount --help lists them", option)
	}
	return nil
}

// mountOptionsOf are the options of a command line; a flag goes before -o.
func mountOptionsOf(c *cli.Context, root bool) (mountOptions, error) {
	o := mountOptions{AllowOther: root, LogLevel: "info", Deferral: defaultDeferral}
	for _, list := range c.StringSlice("o") {
		if err := o.parse(list); err != nil {
			return o, err
		}
	}
	o.Foreground = o.Foreground || c.Bool("foreground")
	for name, set := range valueOptions {
		if v := c.String(name); v != "" {
			if err := set(&o, v); err != nil {
				return o, err
			}
		}
	}
	return o, nil
}
