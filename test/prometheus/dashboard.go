package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Places of what we give to those who monitor, in the source.
const (
	DashboardFile = "packaging/grafana/cvmfs-graphdriver.json"
	AlertsFile    = "packaging/prometheus/alerts.yml"
)

// Dashboard is a dashboard of Grafana, as far as it is looked at here.
type Dashboard struct {
	Title  string
	Panels []Panel
}

// Panel is a panel of a dashboard.
type Panel struct {
	Title       string
	Description string
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []Target
}

// Target is a query of a panel.
type Target struct {
	Expr         string
	LegendFormat string
}

// ReadDashboard reads the dashboard of a source tree.
func ReadDashboard(root string) (*Dashboard, error) {
	b, err := os.ReadFile(filepath.Join(root, DashboardFile))
	if err != nil {
		return nil, err
	}
	var d Dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", DashboardFile, err)
	}
	return &d, nil
}

// Query returns the query for all hosts, with rates over an interval as in "5m".
func (t Target) Query(interval string) string {
	return strings.NewReplacer("$instance", ".*", "$__rate_interval", interval).Replace(t.Expr)
}

// Alert is an alert rule.
type Alert struct {
	Alert       string
	Expr        string
	Annotations map[string]string
}

// ReadAlerts reads the alert rules of a source tree.
func ReadAlerts(root string) ([]Alert, error) {
	b, err := os.ReadFile(filepath.Join(root, AlertsFile))
	if err != nil {
		return nil, err
	}
	var file struct{ Groups []struct{ Rules []Alert } }
	if err := yaml.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", AlertsFile, err)
	}
	var all []Alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}
