{{- define "cvmfs-snapshotter.labels" -}}
app.kubernetes.io/name: cvmfs-snapshotter
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "cvmfs-snapshotter.settings" -}}
state: {{ .Values.state | quote }}
default: {{ .Values.default }}
runtimeClass: {{ .Values.runtimeClass | quote }}
systemdCgroup: {{ .Values.systemdCgroup }}
containerd: {{ .Values.containerd | quote }}
snapshotter: {{ .Values.snapshotter | toJson }}
cvmfs:
{{- range $path, $content := .Values.cvmfs }}
  {{ $path | quote }}: {{ $content | quote }}
{{- else }} {}
{{- end }}
{{- end }}
