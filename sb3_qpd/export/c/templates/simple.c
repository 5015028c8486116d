//: import "macros.h" as macros with context
/* -- memory of this file: for a program that acts in one thread ------------------------------------------------------ */

#ifndef POLICY_ONLY_REENTRANT
static struct policy_state own_state;
//: for name, result, parameters, arguments in macros.functions
//#
${"%s policy_%s(%s)" | format(result, name, parameters or "void") | signature}
{
    ${"return " if result == "int"}policy_${name}_r(&own_state${", " if arguments}${arguments});
}
//: endfor
#endif
