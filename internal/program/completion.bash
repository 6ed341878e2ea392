# bash completion for NAME

_NAME() {
    local cur=${COMP_WORDS[COMP_CWORD]}
    local -a words=("${COMP_WORDS[@]:0:COMP_CWORD}")
    COMPREPLY=()
    # After -- there are only arguments.
    [[ " ${words[*]} " == *" -- "* ]] && return
    [[ $cur == -* ]] && words+=("$cur")
    mapfile -t COMPREPLY < <(compgen -W "$(command NAME "${words[@]:1}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}

complete -o default -F _NAME NAME
