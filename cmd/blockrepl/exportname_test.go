package main

import "testing"

func TestExportNames(t *testing.T) {
	tests := []struct {
		in   string
		want exportName
	}{
		{"", exportName{}},
		{"vol0", exportName{Volume: "vol0"}},
		{"vol0?", exportName{Volume: "vol0"}},
		{"vol0?client=db1", exportName{Volume: "vol0", Client: "db1"}},
		{"vol0?client=db%201", exportName{Volume: "vol0", Client: "db 1"}},
		{"vol0?client=db1&token=7&takeover", exportName{Volume: "vol0", Client: "db1", Token: 7, Takeover: true}},
		{"vol0?takeover=0", exportName{Volume: "vol0"}},
		{"vol0?readonly", exportName{Volume: "vol0", ReadOnly: true}},
		{"?stale=ok", exportName{Stale: true}},
	}
	for _, tt := range tests {
		if got, err := parseExportName(tt.in); err != nil || got != tt.want {
			t.Errorf("parseExportName(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestExportNamesThatAreRefused(t *testing.T) {
	for _, s := range []string{
		"vol0?clinet=db1", "vol0?client=", "vol0?client=%zz", "vol0?client=a%00b", "vol0?token=0", "vol0?token=-1",
		"vol0?token=x", "vol0?stale", "vol0?stale=yes", "vol0?takeover=maybe", "vol0?client=a&client=b", "vol0?a?b",
		"vol0?stale=ok&takeover", "vol0?&", "vol0?client=" + string(make([]byte, 200)),
	} {
		if got, err := parseExportName(s); err == nil {
			t.Errorf("parseExportName(%q) = %+v, want an error", s, got)
		}
	}
}

func TestCertificateNameIsTheIdentityBeforeAllOthers(t *testing.T) {
	named, plain := exportName{Client: "db1"}, exportName{}
	for _, tt := range []struct {
		n         exportName
		tls, addr string
		want      string
	}{
		{named, "web1", "10.0.0.5", "web1"},
		{named, "", "10.0.0.5", "db1"},
		{plain, "", "10.0.0.5", "10.0.0.5"},
	} {
		if got := tt.n.identity(tt.tls, tt.addr); got != tt.want {
			t.Errorf("identity of %+v, certificate %q, address %q = %q, want %q", tt.n, tt.tls, tt.addr, got, tt.want)
		}
	}
}
