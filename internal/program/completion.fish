# fish completion for NAME

function __complete_NAME
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l current (commandline --current-token --cut-at-cursor)
    # After -- there are only arguments.
    contains -- -- $words
    and return
    string match --quiet -- '-*' $current
    and set --append words $current
    set -e words[1]
    command NAME $words --generate-bash-completion 2>/dev/null
end

complete --command NAME --condition 'count (__complete_NAME) >/dev/null' --no-files --arguments '(__complete_NAME)'
