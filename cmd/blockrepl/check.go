package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "check a configuration without starting",
		UsageText: "blockrepl check --config FILE\n   blockrepl check FILE FILE FILE",
		Description: `Says what "serve" would refuse: unknown keys with line and nearest key, ids, sizes,
addresses, TLS files, an image or a data directory in use by another process.
An image that cannot be opened, is missing or smaller than its volume, and damage of what the
journal keeps of a volume, are among them, though "serve" starts the other volumes. The
journal is read for that as at a start, which may take a while after a crash, and no
server starts on it meanwhile.
Also, without refusing it, where file systems are too small for the images, and
which certificates end soon. Nothing is created or changed.

With several files, one of each server, only their text is looked at, and what must be
equal among them: cluster, servers, and the volumes' sizes and members.

With --reload, what "systemctl reload" would refuse; see "blockrepl serve --help".

EXAMPLES:
   blockrepl check --config /etc/blockrepl/blockrepl.toml
   blockrepl check --reload --config /etc/blockrepl/blockrepl.toml
   blockrepl check a.toml b.toml c.toml

EXIT STATUS:
   0 the configuration is good   2 it is not; a line on each mistake`,
		Flags: append(configFlags(),
			&cli.BoolFlag{Name: "reload", Usage: "for a server that runs and is to read it again: its data and images are in use by itself"},
			&cli.BoolFlag{Name: "offline", Usage: "only the text: do not look for files, devices and locks of this host"}),
		Action: check,
	}
}

func check(c *cli.Context) error {
	var configs []*Config
	if c.NArg() == 0 {
		cfg, err := loadConfig(c)
		if err != nil {
			return err
		}
		configs = append(configs, cfg)
	}
	for _, path := range c.Args().Slice() {
		if err := c.Set("config", path); err != nil {
			return usagef("check: %w", err)
		}
		cfg, err := loadConfig(c)
		if err != nil {
			return err
		}
		configs = append(configs, cfg)
	}
	if problems := compareConfigs(configs); len(problems) > 0 {
		return &failure{code: exitUsage, err: errors.Join(problems...)}
	}
	here := len(configs) == 1 && !c.Bool("offline")
	if here {
		look := configs[0].checkHost
		if c.Bool("reload") {
			look = func() []error { return configs[0].checkReload(func(string) bool { return true }) }
		}
		if problems := look(); len(problems) > 0 {
			return &failure{code: exitUsage, err: configs[0].locate(problems)}
		}
	}
	for _, cfg := range configs {
		fmt.Fprintf(c.App.Writer, "%s: good: cluster %s, server %s, %s, %s%s\n", cfg.source(), cfg.Cluster, cfg.ID,
			count(uint64(len(cfg.Servers)), "server"), count(uint64(len(cfg.Volumes)), "volume"), elsewhere(cfg))
		for _, text := range cfg.expiring(time.Now()) {
			fmt.Fprintf(c.App.Writer, "%s: soon: %s\n", cfg.source(), text)
		}
	}
	if here {
		for _, text := range configs[0].cramped() {
			fmt.Fprintf(c.App.Writer, "%s: note: %s\n", configs[0].source(), text)
		}
	}
	return nil
}

// elsewhere says when the server does not hold all volumes of its file.
func elsewhere(cfg *Config) string {
	if own := len(cfg.own()); own < len(cfg.Volumes) {
		return fmt.Sprintf(", %d of them here", own)
	}
	return ""
}
