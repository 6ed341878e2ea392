#compdef NAME

local -a args candidates
args=("${(@Q)words[2,CURRENT-1]}")
# After -- there are only arguments.
if (( ! ${args[(I)--]} )); then
    [[ $PREFIX == -* ]] && args+=("$PREFIX")
    candidates=(${(f)"$(command NAME "${args[@]}" --generate-bash-completion 2>/dev/null)"})
fi
if (( $#candidates )); then
    compadd -- $candidates
else
    _files
fi
