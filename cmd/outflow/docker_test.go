package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"outflow/cmd/internal/app"
)

// No container engine runs where this is developed, so docker/ is held against
// the binary that it packs.

type composeFile struct {
	Services map[string]composeService
	Volumes  map[string]any
}

type composeService struct {
	Image       string
	Build       *struct{ Context, Dockerfile string }
	Command     []string
	Environment map[string]string
	Ports       []string
	Volumes     []string
	Healthcheck struct {
		Test    []string
		Disable bool
	}
	DependsOn map[string]struct{ Condition string } `yaml:"depends_on"`
}

func (s composeService) ours() bool { return strings.HasPrefix(s.Image, "outflow:") }

func compose(t *testing.T) composeFile {
	t.Helper()
	b, err := os.ReadFile("../../docker/compose.yaml")
	require.NoError(t, err)
	var f composeFile
	require.NoError(t, yaml.Unmarshal(b, &f))
	return f
}

func dockerfile(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docker/Dockerfile")
	require.NoError(t, err)
	return string(b)
}

var pinned = regexp.MustCompile(`^[a-z0-9./-]+:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}$`)

func TestEveryImageIsPinned(t *testing.T) {
	t.Parallel()
	for name, s := range compose(t).Services {
		if !s.ours() {
			require.Regexp(t, pinned, s.Image, name)
		}
	}
	from := regexp.MustCompile(`(?m)^FROM (?:--\S+ )?(\S+)`).FindAllStringSubmatch(dockerfile(t), -1)
	require.Len(t, from, 2)
	for _, m := range from {
		require.Regexp(t, pinned, m[1])
	}
	// The image builds with the toolchain that the module asks for.
	mod, err := os.ReadFile("../../go.mod")
	require.NoError(t, err)
	want := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(string(mod))[1]
	require.True(t, strings.HasPrefix(from[0][1], "golang:"+want), "%s builds go %s", from[0][1], want)
}

func TestComposeRunsEveryPartOnceAsItIs(t *testing.T) {
	t.Parallel()
	f := compose(t)
	root := command(nil, io.Discard, io.Discard, nil)
	ran := map[string]bool{}
	built := 0
	for name, s := range f.Services {
		if !s.ours() {
			continue
		}
		require.NotEmpty(t, s.Command, name)
		cmd, rest, err := root.Find(s.Command)
		require.NoError(t, err, name)
		require.NotEqual(t, root, cmd, "%s runs no subcommand", name)
		require.NoError(t, cmd.ParseFlags(rest), name)
		require.Equal(t, name, cmd.Name())
		ran[name] = true

		var environ []string
		for k, v := range s.Environment {
			require.NotEmpty(t, app.Doc(k), "%s sets %s, which is not a variable of outflow", name, k)
			environ = append(environ, k+"="+os.Expand(strings.ReplaceAll(v, ":-", "_or_"), func(string) string { return "secret" }))
		}
		var required []string
		for _, spec := range partCommands {
			if spec.use == name {
				required = spec.required
			}
		}
		_, err = app.LoadConfig(environ, required...)
		require.NoError(t, err, name)

		if s.Build != nil {
			built++
			require.FileExists(t, filepath.Join("../../docker", s.Build.Context, s.Build.Dockerfile))
		}
		if name != "migrate" {
			require.Equal(t, []string{"CMD", "/outflow", "health"}, s.Healthcheck.Test, name)
		}
	}
	require.Equal(t, 1, built, "one service builds the image of all")
	for _, spec := range partCommands {
		require.True(t, ran[spec.use], "no container runs outflow %s", spec.use)
	}
}

func TestComposeWaitsForWhatIsHealthy(t *testing.T) {
	t.Parallel()
	f := compose(t)
	for name, s := range f.Services {
		require.True(t, len(s.Healthcheck.Test) > 1 || s.Healthcheck.Disable, "%s has no health check", name)
		for on, d := range s.DependsOn {
			require.Contains(t, f.Services, on, name)
			want := "service_healthy"
			if f.Services[on].Healthcheck.Disable {
				want = "service_completed_successfully"
			}
			require.Equal(t, want, d.Condition, "%s on %s", name, on)
		}
		for _, v := range s.Volumes {
			volume, _, _ := strings.Cut(v, ":")
			require.Contains(t, f.Volumes, volume, name)
		}
		for _, p := range s.Ports {
			require.True(t, strings.HasPrefix(p, "127.0.0.1:"), "%s publishes %s beyond this machine", name, p)
		}
	}
	require.NotContains(t, f.Services["api"].DependsOn, "kafka", "the API serves while Kafka is away")
	require.Subset(t, f.Services["postgres"].Command, []string{"wal_level=logical", "max_slot_wal_keep_size=4GB"})
}

func TestDockerfileRunsTheBinaryAsNobodySpecial(t *testing.T) {
	t.Parallel()
	text := dockerfile(t)
	require.Contains(t, text, "\nUSER 65532:65532\n")
	require.Contains(t, text, "\nENTRYPOINT [\"/outflow\"]\n")
	for _, m := range regexp.MustCompile(`OUTFLOW_[A-Z_]+`).FindAllString(text, -1) {
		require.NotEmpty(t, app.Doc(m), "%s is not a variable of outflow", m)
	}
	health, _, err := command(nil, io.Discard, io.Discard, nil).Find([]string{"health"})
	require.NoError(t, err)
	require.Equal(t, "health", health.Name())
}

// TestImageBuildsFromItsContext does what the Dockerfile does with the files
// that Dockerfile.dockerignore leaves.
func TestImageBuildsFromItsContext(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a binary")
	}
	b, err := os.ReadFile("../../docker/Dockerfile.dockerignore")
	require.NoError(t, err)
	var ignored []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			ignored = append(ignored, line)
		}
	}
	files, err := exec.Command("git", "-C", "../..", "ls-files", "-co", "--exclude-standard").Output()
	if err != nil {
		t.Skip("not a checkout: ", err)
	}
	dir := t.TempDir()
	for file := range strings.Lines(string(files)) {
		if file = strings.TrimSpace(file); leftOut(file, ignored) {
			continue
		}
		content, err := os.ReadFile(filepath.Join("../..", file))
		if os.IsNotExist(err) {
			continue // deleted, not committed yet
		}
		require.NoError(t, err)
		to := filepath.Join(dir, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		require.NoError(t, os.WriteFile(to, content, 0o644))
	}
	step := regexp.MustCompile(`(?m)^    go build (.*)$`).FindStringSubmatch(dockerfile(t))
	require.NotNil(t, step)
	args := strings.Fields(strings.NewReplacer(`"`, "", "-s -w", "-s").Replace(step[1]))
	args[slices.Index(args, "/out/outflow")] = filepath.Join(dir, "out")
	build := exec.Command("go", append([]string{"build"}, args...)...)
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	said, err := exec.Command(filepath.Join(dir, "out"), "--help").CombinedOutput()
	require.NoError(t, err, "%s", said)
	require.Contains(t, string(said), "migrate")
}

// leftOut knows the patterns that Dockerfile.dockerignore uses: a path from the
// root, and **/ before a name.
func leftOut(file string, patterns []string) bool {
	parts := strings.Split(file, "/")
	for _, p := range patterns {
		if name, anywhere := strings.CutPrefix(p, "**/"); anywhere {
			if slices.ContainsFunc(parts, func(part string) bool { ok, _ := filepath.Match(name, part); return ok }) {
				return true
			}
		} else if file == p || strings.HasPrefix(file, p+"/") {
			return true
		}
	}
	return false
}
