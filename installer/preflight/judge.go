package preflight

import "slices"

// rules give findings, each for one matter.
var rules = []func(f *Facts, p *Plan) []Finding{
	user, reachable, here, version, rootless, imageStore, flags, file, storageOptions, driver, containers, images,
	moves, swarm, liveRestore,
	plugin, pluginState, lacking, needed, folders,
	dataRoot, space,
	kernel, mounts, view, security, clock,
	configuration, named, repositories, minio,
}

// snapshotterRules are those for a host of the snapshotter, and toldRules for an engine that is told of it.
var (
	snapshotterRules = []func(f *Facts, p *Plan) []Finding{
		user, silent, dataRoot, space, kernel, security, clock, configuration, named, repositories, lacking, lost,
	}
	toldRules = []func(f *Facts, p *Plan) []Finding{reachable, here, rootless, remapped, file, liveRestore}
)

// Judge returns all findings for a plan, the gravest first.
func Judge(f Facts, p Plan) []Finding {
	var all []Finding
	apply := rules
	if p.Snapshots {
		apply = snapshotterRules
		if p.DaemonJSON != "" {
			apply = slices.Concat(toldRules, apply)
		}
	}
	for _, rule := range apply {
		all = append(all, rule(&f, &p)...)
	}
	return sorted(all)
}

// one makes the findings of a rule that has one thing to say.
func one(severity Severity, id, what, remedy string) []Finding {
	return []Finding{{ID: id, Severity: severity, What: what, Remedy: remedy}}
}

// with adds evidence to the last of findings.
func with(findings []Finding, detail string) []Finding {
	findings[len(findings)-1].Detail = detail
	return findings
}

// becomes reports whether the plan makes the driver the engine's, which it isn't yet.
func becomes(f *Facts, p *Plan) bool {
	return p.Install && !f.Engine.silent() && !f.Engine.Active(p.Name)
}
